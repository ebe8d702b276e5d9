//! Forebay's own kinds: AddressPool, and TrafficPolicy as its CRD in `deploy/crds` has it.

use super::Schema;
use super::core::{LABEL_SELECTOR, METADATA};
use super::format::{CIDR, DNS_NAME, NAME, POOL_RANGE};
use super::{list, may, need};

pub(super) static ADDRESS_POOL: Schema = Schema::Object(
    &[
        need("metadata", &METADATA),
        need(
            "spec",
            &Schema::Object(
                &[
                    need(
                        "ranges",
                        &list(1, usize::MAX, &Schema::Text(1, 100, POOL_RANGE)),
                    ),
                    may("namespaceSelector", &LABEL_SELECTOR),
                    may("announce", &Schema::Choice(&["L2", "None"])),
                ],
                &[],
            ),
        ),
    ],
    &[],
);

const CIDR_TEXT: Schema = Schema::Text(1, 43, CIDR);

pub(super) static TRAFFIC_POLICY: Schema = Schema::Object(
    &[
        need("metadata", &METADATA),
        need(
            "spec",
            &Schema::Object(
                &[
                    need("targetRefs", &list(1, 16, &TARGET)),
                    may("returnPath", &Schema::Choice(&["Direct", "LocalOnly"])),
                    may(
                        "sources",
                        &Schema::Object(
                            &[
                                may("allow", &list(1, 1024, &CIDR_TEXT)),
                                may("deny", &list(0, 1024, &CIDR_TEXT)),
                            ],
                            &[],
                        ),
                    ),
                    may(
                        "udp",
                        &Schema::Object(
                            &[may("hash", &Schema::Choice(&["FiveTuple", "Addresses"]))],
                            &[],
                        ),
                    ),
                    may(
                        "clientAddress",
                        &Schema::Object(
                            &[
                                may("proxyProtocol", &Schema::Bool),
                                may("trustedHops", &Schema::Number(0, 16)),
                            ],
                            &[],
                        ),
                    ),
                ],
                &[],
            ),
        ),
    ],
    &[],
);

/// Group and kind may be left away in files, since there is but one of each.
const TARGET: Schema = Schema::Object(
    &[
        may("group", &Schema::Choice(&["gateway.networking.k8s.io"])),
        may("kind", &Schema::Choice(&["Gateway"])),
        need("name", &NAME),
        may("sectionName", &DNS_NAME),
    ],
    &[],
);

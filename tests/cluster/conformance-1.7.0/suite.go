// Package suite pins the official conformance suite of Gateway API. What is built is the suite's own test, in its own
// package; nothing here is part of it.
package suite

import _ "sigs.k8s.io/gateway-api/conformance"

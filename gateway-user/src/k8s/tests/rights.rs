//! Who may ask for what: an API server's rules over [`RIGHTS`].

use http::Method;

use crate::k8s::rights::{Place, RIGHTS, Right};

/// What a request is about, in the words of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Asked {
    pub(super) verb: &'static str,
    pub(super) group: String,
    /// With its part behind a slash.
    pub(super) resource: String,
    /// Empty: none, or all.
    pub(super) namespace: String,
    /// Empty: all objects.
    pub(super) name: String,
}

impl Asked {
    /// What a request needs; nothing if it is about no object. An apply of something `new` creates it.
    pub(super) fn all(
        parts: &http::request::Parts,
        watches: bool,
        one: Option<&str>,
        new: bool,
    ) -> Vec<Self> {
        let words: Vec<&str> = parts.uri.path().split('/').skip(1).collect();
        let (group, rest) = match &words[..] {
            ["api", _, rest @ ..] => ("", rest),
            ["apis", group, _, rest @ ..] => (*group, rest),
            _ => return Vec::new(),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let (resource, name) = match rest {
            [] => return Vec::new(),
            [plural] => ((*plural).to_owned(), one.unwrap_or_default()),
            [plural, name] => ((*plural).to_owned(), *name),
            [plural, name, part, ..] => (format!("{plural}/{part}"), *name),
        };
        let verb = match (&parts.method, name) {
            (&Method::GET, _) if watches => "watch",
            (&Method::GET, _) if rest.len() == 1 => "list",
            (&Method::GET, _) => "get",
            (&Method::POST, _) => "create",
            (&Method::PUT, _) => "update",
            (&Method::PATCH, _) => "patch",
            _ => "other",
        };
        let kind = parts.headers.get("content-type");
        let applies = kind.is_some_and(|kind| kind == "application/apply-patch+yaml");
        let asked = Self {
            verb,
            group: group.to_owned(),
            resource,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let create = (applies && new).then(|| Self {
            verb: "create",
            ..asked.clone()
        });
        [asked].into_iter().chain(create).collect()
    }
}

/// Rules that are held.
#[derive(Default)]
pub(super) struct Rights {
    held: Vec<(Right, Place)>,
    /// What was asked for without a rule.
    pub(super) refused: Vec<Asked>,
}

impl Rights {
    /// Those that Forebay needs to read these namespaces, without one of them.
    pub(super) fn of(namespaces: &[&str], without: Option<&(Right, Place)>) -> Self {
        let held = needed(namespaces).into_iter();
        Self {
            held: held.filter(|rule| Some(rule) != without).collect(),
            refused: Vec::new(),
        }
    }

    pub(super) fn may(&mut self, asked: Asked) -> bool {
        let may = self.held.iter().any(|(right, place)| {
            right.group == asked.group
                && right.resources.contains(&asked.resource.as_str())
                && right.verbs.contains(&asked.verb)
                && place
                    .namespace
                    .as_ref()
                    .is_none_or(|of| *of == asked.namespace)
                && place.name.as_ref().is_none_or(|of| *of == asked.name)
        });
        if !may {
            self.refused.push(asked);
        }
        may
    }
}

/// All that Forebay needs to read these namespaces.
pub(super) fn needed(namespaces: &[&str]) -> Vec<(Right, Place)> {
    let namespaces: Vec<String> = namespaces.iter().map(|name| (*name).to_owned()).collect();
    let places = |right: &Right| {
        let right = *right;
        let places = right.places(&namespaces).into_iter();
        places.map(move |place| (right, place)).collect::<Vec<_>>()
    };
    RIGHTS.iter().flat_map(places).collect()
}

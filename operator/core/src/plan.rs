//! The changes that lead from what is there to what should be.

use crate::desired::Resource;

/// What has to be done with a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is not there.
    Create,
    /// A setting differs: field, as it is, as it should be.
    Update(&'static str, String, String),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The resource as it should be.
    pub resource: Resource,
    /// What has to be done.
    pub action: Action,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Resource { kind, name, settings } = &self.resource;
        match &self.action {
            Action::Create => {
                let settings: Vec<String> = settings.iter().map(|(field, value)| format!("{field} {value}")).collect();
                let settings = if settings.is_empty() { String::new() } else { format!(" ({})", settings.join(", ")) };
                write!(f, "create {kind} {name}{settings}")
            }
            Action::Update(field, from, to) => write!(f, "change {kind} {name}: {field} {from} → {to}"),
        }
    }
}

/// The changes, in the order of `desired`; none when everything is as it should be.
pub fn plan(desired: &[Resource], observed: &[Resource]) -> Vec<Change> {
    let mut changes = Vec::new();
    for resource in desired {
        let Some(found) = observed.iter().find(|o| o.kind == resource.kind && o.name == resource.name) else {
            changes.push(Change { resource: resource.clone(), action: Action::Create });
            continue;
        };
        for (field, value) in &resource.settings {
            let is = found.settings.iter().find(|(f, _)| f == field).map_or("", |(_, v)| v.as_str());
            if is != value {
                changes.push(Change { resource: resource.clone(), action: Action::Update(field, is.to_owned(), value.clone()) });
            }
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Kind;

    #[test]
    fn a_plan_after_its_apply_is_empty() {
        let resource =
            |shards: &str| Resource { kind: Kind::KinesisStream, name: "events".to_owned(), settings: vec![("shards", shards.to_owned())] };
        let wanted = vec![resource("4")];
        assert_eq!(plan(&wanted, &[]).iter().map(ToString::to_string).collect::<Vec<_>>(), ["create stream events (shards 4)"]);
        assert_eq!(
            plan(&wanted, &[resource("2")]).iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["change stream events: shards 2 → 4"]
        );
        assert_eq!(plan(&wanted, &wanted), []);
    }
}

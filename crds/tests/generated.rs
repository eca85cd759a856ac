//! What is generated is what is in the repository, and it is small enough for etcd and for people.

use std::path::Path;

#[test]
fn the_definition_in_the_repository_is_current_and_small() {
    let now = serde_saphyr::to_string(&leat_crds::crd::definition()).expect("YAML");
    assert!(now.len() < 250_000, "the definition has {} bytes", now.len());
    for copy in ["manifests/crds/streamingpipelines.yaml", "charts/leat/files/streamingpipelines.yaml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(copy);
        let there = std::fs::read_to_string(&path).expect("a generated file");
        assert!(there == now, "{copy} is stale: cargo run -p leat-crds --example crd > {copy}");
    }
}

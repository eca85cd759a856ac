//! Prints the CustomResourceDefinition as YAML: `cargo run -p leat-crds --example crd > manifests/crds/streamingpipelines.yaml`.

fn main() {
    print!("{}", serde_saphyr::to_string(&leat_crds::crd::definition()).unwrap_or_default());
}

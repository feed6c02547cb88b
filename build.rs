//! Compiles the protocol definitions without `protoc`: building needs nothing but cargo.

// A build script is told everything through its environment.
#[allow(clippy::disallowed_methods)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(
        [
            "proto/inference.proto",
            "proto/scheduler.proto",
            "proto/agent.proto",
        ],
        ["proto"],
    )?;
    tonic_prost_build::configure()
        .build_server(cfg!(feature = "demo"))
        .compile_fds(descriptors)?;
    let target = std::env::var("TARGET").unwrap_or_else(|_| "unknown".into());
    println!("cargo:rustc-env=SHIM_BUILD_TARGET={target}");
    Ok(())
}

//! Finds out which libkrun the program will be linked with, so that it can say so.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "system-libkrun")]
    {
        // krun-sys has found it before: its build fails with the reason where there is none.
        let library = pkg_config::Config::new()
            .cargo_metadata(false)
            .probe("libkrun")
            .expect("krun-sys was built against it");
        println!("cargo:rustc-env=III_LIBKRUN_VERSION={}", library.version);
    }
}

//! Workers that talk to an iii engine, through their VMs' gateways: with the SDKs as the registries
//! have them, and the examples as their READMEs start them. The engine is a stand-in.

mod example;
mod examples;
mod names;

use iii_integration::engine::{Engine, Happened};

/// Nobody was told that its name is taken.
fn assert_no_refusal(engine: &Engine) {
    let refused = |happened: &Happened| matches!(happened, Happened::Refused { .. });
    assert!(!engine.history().iter().any(refused), "{}", engine.story());
}

//! Where the workers of a file find the iii engine: what the command line says, else the file,
//! else the environment, else nowhere.

use crate::WorkerSpec;
use crate::workers_file::EngineKey;

/// The variable that programs of iii read the engine's address from.
const VARIABLE: &str = "III_URL";

/// What holds.
pub(crate) fn choose(flag: Option<&EngineKey>, file: &EngineKey) -> Result<EngineKey, String> {
    // A value that is not UTF-8 is no URL.
    let variable = std::env::var_os(VARIABLE).map(|value| value.to_string_lossy().into_owned());
    among(flag, file, variable)
}

fn among(
    flag: Option<&EngineKey>,
    file: &EngineKey,
    variable: Option<String>,
) -> Result<EngineKey, String> {
    let said = flag.cloned().unwrap_or_default().or(|| file.clone());
    match variable.filter(|text| !text.is_empty()) {
        Some(text) if said == EngineKey::Absent => text.parse().map_err(|error| {
            format!("{error}\n    it stands in the variable {VARIABLE}; unset it, or pass --engine")
        }),
        Some(_) | None => Ok(said),
    }
}

/// Tells the workers.
pub(crate) fn tell(workers: &mut [WorkerSpec], engine: &EngineKey) {
    for worker in workers {
        worker.engine = engine.address().cloned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_before_the_file_and_that_before_the_environment() {
        let key = |text: &str| text.parse::<EngineKey>().unwrap();
        let (a, b, c) = (key("ws://a:1"), key("ws://b:1"), "ws://c:1".to_owned());
        let absent = EngineKey::Absent;
        let none = EngineKey::None;
        for (flag, file, variable, chosen) in [
            (None, &absent, None, absent.clone()),
            (None, &absent, Some(String::new()), absent.clone()),
            (None, &absent, Some(c.clone()), key(&c)),
            (None, &absent, Some("none".into()), none.clone()),
            (None, &b, Some(c.clone()), b.clone()),
            (None, &none, Some(c.clone()), none.clone()),
            (Some(&a), &b, Some(c.clone()), a.clone()),
            (Some(&none), &b, Some(c.clone()), none.clone()),
            // What does not count is not looked at.
            (Some(&a), &b, Some("garbage".into()), a.clone()),
        ] {
            assert_eq!(among(flag, file, variable), Ok(chosen));
        }
        let error = among(None, &absent, Some("localhost:9".into())).unwrap_err();
        assert!(
            error.contains("III_URL") && error.contains("ws://"),
            "{error}"
        );
    }
}

//! `restart:` and `vm_restart:`.

use std::time::Duration;

use iii_proto::restart::{RestartLimit, RestartMode, RestartPolicy};

use super::duration;
use super::reader::{Reader, Setting};

/// Keys of the map form.
pub(crate) const KEYS: &[&str] = &[
    "mode",
    "initial",
    "factor",
    "max",
    "jitter",
    "limit",
    "reset_after",
    "stop_codes",
];

/// Keys of `limit:` in its map form.
pub(crate) const LIMIT_KEYS: &[&str] = &["restarts", "window"];

const MODES: &[(&str, RestartMode)] = &[
    ("always", RestartMode::Always),
    ("on-failure", RestartMode::OnFailure),
    ("never", RestartMode::Never),
];

/// A word, or a map; what is not given stays as `base` has it.
pub(crate) fn policy(
    reader: &mut Reader<'_>,
    setting: &Setting<'_>,
    base: RestartPolicy,
) -> RestartPolicy {
    let mut policy = base;
    if !setting.is_map() {
        if let Some(mode) = reader.word(setting, MODES) {
            policy.mode = mode;
        }
        return policy;
    }
    let Some(fields) = reader.fields(setting, KEYS) else {
        return policy;
    };
    if let Some(s) = fields.get("mode")
        && let Some(mode) = reader.word(&s, MODES)
    {
        policy.mode = mode;
    }
    if let Some(s) = fields.get("initial")
        && let Some(initial) = reader.duration(&s)
    {
        policy.initial = initial;
        // An explicit `max` below `initial` is a fault; a default one just follows.
        policy.max = policy.max.max(initial);
    }
    if let Some(s) = fields.get("factor")
        && let Some(factor) = reader.fraction(&s, 1.0, 1000.0)
    {
        policy.factor = factor;
    }
    if let Some(s) = fields.get("max")
        && let Some(max) = reader.duration(&s)
    {
        if max < policy.initial {
            let initial = duration::format(policy.initial);
            reader.fault(&s, format!("is shorter than `initial`, which is {initial}"));
        }
        policy.max = max;
    }
    if let Some(s) = fields.get("jitter")
        && let Some(jitter) = reader.fraction(&s, 0.0, 1.0)
    {
        policy.jitter = jitter;
    }
    if let Some(s) = fields.get("limit")
        && let Some(limit) = limit(reader, &s)
    {
        policy.limit = limit;
    }
    if let Some(s) = fields.get("reset_after")
        && let Some(reset_after) = reader.positive_duration(&s)
    {
        policy.reset_after = reset_after;
    }
    if let Some(s) = fields.get("stop_codes") {
        policy.stop_codes = reader
            .items_or_one(&s)
            .iter()
            .filter_map(|item| reader.number(item, 0, 255))
            // Bounded by 255 just above.
            .map(|code| code as i32)
            .collect();
    }
    policy
}

/// `10/5m`, `none`, or a map.
fn limit(reader: &mut Reader<'_>, setting: &Setting<'_>) -> Option<Option<RestartLimit>> {
    if setting.is_map() {
        let fields = reader.fields(setting, LIMIT_KEYS)?;
        let (Some(restarts), Some(window)) = (fields.get("restarts"), fields.get("window")) else {
            reader.fault(setting, "needs both `restarts` and `window`");
            return None;
        };
        let restarts = reader.number(&restarts, 0, 100_000);
        let window = reader.positive_duration(&window);
        // Bounded by 100,000 just above.
        let restarts = restarts? as u32;
        let window = window?;
        return Some(Some(RestartLimit { restarts, window }));
    }
    reader.parsed(setting, parse_limit)
}

fn parse_limit(text: &str) -> Result<Option<RestartLimit>, String> {
    if text == "none" {
        return Ok(None);
    }
    let help = || format!("{text:?} is not a limit: write it 10/5m (restarts/window) or none");
    let (restarts, window) = text.split_once('/').ok_or_else(help)?;
    let restarts: u32 = restarts.trim().parse().map_err(|_| help())?;
    if restarts > 100_000 {
        return Err(String::from("grants more than 100000 restarts: write none"));
    }
    let window = duration::parse(window)?;
    if window == Duration::ZERO {
        return Err(String::from("its window must be longer than 0"));
    }
    Ok(Some(RestartLimit { restarts, window }))
}

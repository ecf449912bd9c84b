//! `iii-super config`: what a workers file means.

use iii_actors::spec::{NetworkMode, RootSpec, SECRET_MASK, UserSpec, WorkerSpec};
use iii_proto::guest::{HealthCheck, Probe};
use iii_proto::restart::{RestartMode, RestartPolicy};
use serde_json::{Map, Value, json};

use super::arguments::FileArguments;
use super::say::{print, say, say_plain};
use super::{REFUSED, engine};
use crate::workers_file::{
    EngineKey, WorkersFile, WorkersFileError, format_duration, format_size, platform_word,
};

pub(super) fn run(args: &FileArguments) -> u8 {
    let Some((file, workers)) = load(args, None) else {
        return REFUSED;
    };
    let all: Map<String, Value> = workers
        .iter()
        .map(|worker| (worker.name.to_string(), describe(worker)))
        .collect();
    let engine = file.engine.address().map(ToString::to_string);
    let value = json!({ "engine": engine, "workers": all });
    let text = if args.json {
        // Values with text keys: writing them cannot fail.
        serde_json::to_string_pretty(&value).expect("a value is JSON") + "\n"
    } else {
        let mut text = String::new();
        yaml(&value, 0, &mut text);
        text
    };
    print(&text)
}

/// The file and those of its workers that were asked for, with the engine that holds for them;
/// what is wrong with any of it was said.
pub(super) fn load(
    args: &FileArguments,
    engine: Option<&EngineKey>,
) -> Option<(WorkersFile, Vec<WorkerSpec>)> {
    let mut file = match WorkersFile::load(&args.file) {
        Ok(file) => file,
        Err(error) => {
            refuse(&error);
            return None;
        }
    };
    file.engine = engine::choose(engine, &file.engine).map_err(say).ok()?;
    engine::tell(&mut file.workers, &file.engine);
    let selected = file
        .select(&args.names)
        .map_err(|unknown| unknown.iter().for_each(say))
        .ok()?;
    Some((file, selected))
}

/// Faults stand at the start of their lines, as editors look for them.
fn refuse(error: &WorkersFileError) {
    match error {
        WorkersFileError::Read { .. } => say(error),
        WorkersFileError::Invalid { path, faults } => {
            say_plain(error);
            let count = faults.len();
            let faults = if count == 1 { "fault" } else { "faults" };
            say(format_args!("{count} {faults} in {}", path.display()));
        }
    }
}

/// A worker in the words of the workers file, with every default filled in.
fn describe(worker: &WorkerSpec) -> Value {
    let env: Map<String, Value> = worker
        .env
        .iter()
        .map(|(name, value)| {
            let secret = worker.secret_env.contains(name);
            let value = if secret { SECRET_MASK } else { value };
            (name.clone(), json!(value))
        })
        .collect();
    let mounts: Vec<String> = worker
        .mounts
        .iter()
        .map(|m| {
            let mode = if m.read_only { "ro" } else { "rw" };
            format!("{}:{}:{mode}", m.host.display(), m.guest)
        })
        .collect();
    let ports: Vec<String> = worker
        .ports
        .iter()
        .map(|p| {
            let host = std::net::SocketAddr::new(p.address, p.host_port);
            format!("{host}:{}", p.guest_port)
        })
        .collect();
    let resources = &worker.resources;
    let image = match &worker.root {
        RootSpec::Image(image) => Some(image),
        // Host, or a kind that the file cannot name yet.
        _ => None,
    };
    json!({
        "root": match (worker.persist, &worker.root) {
            (Some(size), _) => json!({ "persist": format_size(size) }),
            (None, RootSpec::Host) => json!("host"),
            (None, _) => Value::Null,
        },
        "image": image.map(|image| image.reference.familiar()),
        "pull": image.map(|image| image.pull),
        "platform": image.and_then(|image| image.platform).map(platform_word),
        "entrypoint": image.and_then(|image| image.entrypoint.clone()),
        "command": worker.command,
        "cwd": worker.cwd,
        "env": env,
        "secrets": worker.secret_env,
        "user": worker.user.as_ref().map(|user| match user {
            UserSpec::Named(name) => name.clone(),
            UserSpec::Ids { uid, gid } => format!("{uid}:{gid}"),
        }),
        "resources": {
            "cpus": resources.cpus,
            "memory": format_size(resources.memory),
            "pids": resources.pids,
            "open_files": resources.open_files,
            "disk": match worker.persist {
                // Its changes are on the disk that persists.
                Some(_) => Value::Null,
                None => json!(format_size(resources.disk.unwrap_or(resources.memory / 2))),
            },
        },
        "mounts": mounts,
        "ports": ports,
        "depends_on": worker
            .depends_on
            .iter()
            .map(|d| {
                let demand = json!({ "condition": d.condition, "restart": d.restart });
                (d.worker.to_string(), demand)
            })
            .collect::<Map<String, Value>>(),
        "network": {
            "mode": match worker.network.mode {
                NetworkMode::Public => "public",
                NetworkMode::Engine => "engine",
                NetworkMode::None => "none",
            },
            "allow": worker.network.allow,
            "host_ports": worker.network.host_ports,
            "dns": worker.network.dns,
        },
        "restart": policy(&worker.restart),
        "vm_restart": policy(&worker.vm_restart),
        "health": worker.health.as_ref().map(health),
        "logs": {
            "max_size": format_size(worker.logs.max_size),
            "max_files": worker.logs.max_files,
        },
        "stop_grace": format_duration(worker.stop_grace),
        "boot_deadline": format_duration(worker.boot_deadline),
        "heartbeat_timeout": format_duration(worker.heartbeat_timeout),
    })
}

fn policy(policy: &RestartPolicy) -> Value {
    let limit = policy.limit.map_or(String::from("none"), |limit| {
        format!("{}/{}", limit.restarts, format_duration(limit.window))
    });
    json!({
        "mode": match policy.mode {
            RestartMode::Always => "always",
            RestartMode::OnFailure => "on-failure",
            RestartMode::Never => "never",
        },
        "initial": format_duration(policy.initial),
        "factor": policy.factor,
        "max": format_duration(policy.max),
        "jitter": policy.jitter,
        "limit": limit,
        "reset_after": format_duration(policy.reset_after),
        "stop_codes": policy.stop_codes,
    })
}

fn health(health: &HealthCheck) -> Value {
    let time = |ms| format_duration(std::time::Duration::from_millis(ms));
    let (kind, probe) = match &health.probe {
        Probe::Exec(command) => ("exec", json!(command)),
        Probe::Tcp(port) => ("tcp", json!(port)),
        Probe::Http { port, path } => ("http", json!(format!("{port}{path}"))),
    };
    json!({
        kind: probe,
        "interval": time(health.interval_ms),
        "timeout": time(health.timeout_ms),
        "retries": health.retries,
        "start_period": time(health.start_period_ms),
    })
}

/// Maps as YAML blocks, everything else as JSON, which is YAML; what is not set is left out, so
/// that the result is itself a workers file.
fn yaml(value: &Value, depth: usize, out: &mut String) {
    let Value::Object(map) = value else {
        out.push_str(&format!(" {value}\n"));
        return;
    };
    if depth > 0 {
        out.push('\n');
    }
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    // An entry point of nothing is not none.
    let said =
        |key: &str, value: &Value| !empty(value) || (key == "entrypoint" && value.is_array());
    for (key, value) in map.iter().filter(|(key, value)| said(key, value)) {
        out.push_str(&format!("{:indent$}{key}:", "", indent = depth * 2));
        yaml(value, depth + 1, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn what_is_shown_is_a_workers_file_that_means_the_same() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("s.env"), "TOKEN=hunter2\n").unwrap();
        let text = "\
workers:
  web:
    path: .
    command: [sh, -c, 'echo \"$X: #1\"']
    env: {A: 'yes', N: '1.10', E: ''}
    ports: ['8080:80', '[::1]:81:82']
    user: '1000:100'
    health: {http: 80/x}
    restart: {limit: none, mode: always}
    network: {mode: engine, allow: ['*.example.com'], dns: [9.9.9.9]}
    mounts: ['.:/data:ro']
    logs: {max_size: 3MiB}
";
        let parse = |text: &str| {
            WorkersFile::parse(text, Path::new("f"), dir.path(), &|_| None)
                .unwrap()
                .workers
        };
        let shown = |workers: &[WorkerSpec]| {
            let all: Map<String, Value> = workers
                .iter()
                .map(|w| (w.name.to_string(), describe(w)))
                .collect();
            let mut text = String::new();
            yaml(&json!({ "workers": all }), 0, &mut text);
            text
        };
        let first = parse(text);
        let again = shown(&first);
        let second = parse(&again);
        let images = parse(
            "workers: {w: {image: 'node:22', pull: always, platform: linux/arm64, \
             entrypoint: [a, b]}}",
        );
        assert_eq!(parse(&shown(&images))[0].root, images[0].root);
        // The defaults were filled in; all else is the same.
        let mut expected = first;
        expected[0].resources.disk = Some(expected[0].resources.memory / 2);
        expected[0].env.sort();
        assert_eq!(second, expected, "{again}");

        let secret = parse("workers: {w: {command: x, env_file: s.env}}");
        let text = shown(&secret);
        assert!(
            text.contains("TOKEN: \"*****\"") && !text.contains("hunter2"),
            "{text}"
        );
        let marked = parse("workers: {w: {command: x, env: {A: hunter2}, secrets: [A]}}");
        let text = shown(&marked);
        assert!(
            text.contains("A: \"*****\"") && !text.contains("hunter2"),
            "{text}"
        );
        assert_eq!(parse(&text)[0].secret_env, marked[0].secret_env);
    }
}

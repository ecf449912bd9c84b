//! The tables: which file means what.

use crate::dev::project::Kind;

/// A file that says what a project is; the first that is there decides.
pub(super) const KINDS: &[(Kind, &str)] = &[
    (Kind::Deno, "deno.json"),
    (Kind::Deno, "deno.jsonc"),
    (Kind::Bun, "bun.lock"),
    (Kind::Bun, "bun.lockb"),
    (Kind::Bun, "bunfig.toml"),
    (Kind::Node, "package.json"),
    (Kind::Python, "pyproject.toml"),
    (Kind::Python, "requirements.txt"),
    (Kind::Rust, "Cargo.toml"),
    (Kind::Go, "go.mod"),
    (Kind::Python, "manage.py"),
    (Kind::Python, "main.py"),
    (Kind::Python, "app.py"),
    (Kind::Python, "server.py"),
    (Kind::Node, "index.js"),
    (Kind::Node, "index.mjs"),
    (Kind::Node, "server.js"),
    (Kind::Node, "server.mjs"),
    (Kind::Node, "main.js"),
    (Kind::Node, "app.js"),
];

/// What a file of a kind of project makes us do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) kind: Kind,
    pub(super) file: &'static str,
    /// For a shell in the project's directory.
    pub(super) command: &'static str,
    /// What the guest must have for it.
    pub(super) program: &'static str,
}

const fn row(kind: Kind, file: &'static str, command: &'static str, program: &'static str) -> Row {
    Row {
        kind,
        file,
        command,
        program,
    }
}

/// How dependencies are installed; where to, is said by the environment (see `dev::worker`). Lock files first, since they say more.
pub(super) const INSTALLS: &[Row] = &[
    row(Kind::Deno, "deno.lock", "deno install --frozen", "deno"),
    row(Kind::Deno, "deno.json", "deno install", "deno"),
    row(Kind::Deno, "deno.jsonc", "deno install", "deno"),
    row(
        Kind::Bun,
        "bun.lock",
        "bun install --frozen-lockfile",
        "bun",
    ),
    row(
        Kind::Bun,
        "bun.lockb",
        "bun install --frozen-lockfile",
        "bun",
    ),
    row(Kind::Bun, "package.json", "bun install --no-save", "bun"),
    row(
        Kind::Node,
        "pnpm-lock.yaml",
        "pnpm install --frozen-lockfile",
        "pnpm",
    ),
    row(
        Kind::Node,
        "yarn.lock",
        "yarn install --frozen-lockfile",
        "yarn",
    ),
    row(Kind::Node, "package-lock.json", "npm ci", "npm"),
    row(Kind::Node, "npm-shrinkwrap.json", "npm ci", "npm"),
    // What is installed is the cache's; the project gets no lock file that nobody asked for.
    row(
        Kind::Node,
        "package.json",
        "npm install --no-package-lock",
        "npm",
    ),
    row(Kind::Python, "uv.lock", "uv sync --frozen --active", "uv"),
    row(
        Kind::Python,
        "requirements.txt",
        "python3 -m venv --clear \"$VIRTUAL_ENV\" && \
         \"$VIRTUAL_ENV/bin/pip\" install -r requirements.txt",
        "python3",
    ),
    row(
        Kind::Python,
        "pyproject.toml",
        "python3 -m venv --clear \"$VIRTUAL_ENV\" && \"$VIRTUAL_ENV/bin/pip\" install -e .",
        "python3",
    ),
    row(Kind::Go, "go.sum", "go mod download", "go"),
];

/// How a project is started, unless it names a script.
pub(super) const STARTS: &[Row] = &[
    row(Kind::Deno, "main.ts", "deno run -A main.ts", "deno"),
    row(Kind::Deno, "main.js", "deno run -A main.js", "deno"),
    row(Kind::Deno, "mod.ts", "deno run -A mod.ts", "deno"),
    row(Kind::Bun, "index.ts", "bun run index.ts", "bun"),
    row(Kind::Bun, "index.tsx", "bun run index.tsx", "bun"),
    row(Kind::Bun, "index.js", "bun run index.js", "bun"),
    row(Kind::Bun, "src/index.ts", "bun run src/index.ts", "bun"),
    row(Kind::Node, "index.js", "node index.js", "node"),
    row(Kind::Node, "index.mjs", "node index.mjs", "node"),
    row(Kind::Node, "server.js", "node server.js", "node"),
    row(Kind::Node, "server.mjs", "node server.mjs", "node"),
    row(Kind::Node, "main.js", "node main.js", "node"),
    row(Kind::Node, "app.js", "node app.js", "node"),
    row(Kind::Node, "src/index.js", "node src/index.js", "node"),
    row(
        Kind::Python,
        "manage.py",
        "python3 manage.py runserver --noreload 0.0.0.0:8000",
        "python3",
    ),
    row(Kind::Python, "main.py", "python3 main.py", "python3"),
    row(Kind::Python, "app.py", "python3 app.py", "python3"),
    row(Kind::Python, "server.py", "python3 server.py", "python3"),
    row(Kind::Python, "__main__.py", "python3 .", "python3"),
    row(
        Kind::Python,
        "src/main.py",
        "python3 src/main.py",
        "python3",
    ),
    row(Kind::Rust, "Cargo.toml", "cargo run", "cargo"),
    row(Kind::Go, "go.mod", "go run .", "go"),
];

//! How a command finds the supervisor of a workers file and speaks to it.

use std::path::{Path, PathBuf};

use iii_firmware::home::IiiHome;

use super::project;
use super::say::say;
use super::{FAILED, NOT_RUNNING, REFUSED};
use crate::control::client::{Answer, Client, ClientError};
use crate::control::protocol::{Reply, Request, WorkerInfo};
use crate::output::screen::Screen;
use crate::workers_file::FILE_NAME;

/// Why a command ends here: what was said, and the exit code.
#[derive(Debug)]
pub(super) struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    pub(super) fn new(code: u8, message: impl ToString) -> Self {
        Self {
            message: message.to_string(),
            code,
        }
    }

    /// The same with another exit code.
    pub(super) fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// Tells the user.
    pub(super) fn say(self) -> u8 {
        say(self.message);
        self.code
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::NotRunning => NOT_RUNNING,
            _ => FAILED,
        };
        Self::new(code, error)
    }
}

/// A workers file and where its supervisor is to be found.
#[derive(Debug)]
pub(super) struct Project {
    file: PathBuf,
    directory: PathBuf,
}

impl Project {
    /// The project of this workers file, which is there.
    pub(super) fn new(file: &Path) -> Result<Self, Failure> {
        Self::find(file, project::state_dir)
    }

    /// The project of this workers file, which may have been removed since.
    pub(super) fn of(file: &Path) -> Result<Self, Failure> {
        Self::find(file, project::running_state_dir)
    }

    fn find(
        file: &Path,
        state_dir: impl FnOnce(&IiiHome, &Path) -> Result<PathBuf, project::ProjectError>,
    ) -> Result<Self, Failure> {
        let refused = |error: &dyn std::fmt::Display| Failure::new(REFUSED, error);
        let home = IiiHome::from_env().map_err(|error| refused(&error))?;
        let directory = state_dir(&home, file).map_err(|error| refused(&error))?;
        Ok(Self {
            file: file.to_owned(),
            directory,
        })
    }

    /// As it was named.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Its state directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its supervisor, if one runs.
    pub(super) async fn client(&self) -> Result<Client, ClientError> {
        Client::connect(&self.directory).await
    }

    /// Its supervisor.
    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        self.client().await.map_err(|error| {
            if !matches!(error, ClientError::NotRunning) {
                return error.into();
            }
            let file = self.file.display();
            let start = if self.file == Path::new(FILE_NAME) {
                String::from("iii-super run")
            } else {
                format!("iii-super run -f {file}")
            };
            let message = format!("no supervisor runs for {file}; start it with `{start}`");
            Failure::new(NOT_RUNNING, message)
        })
    }

    /// Asks its supervisor.
    pub(super) async fn ask(&self, request: Request) -> Result<Answer, Failure> {
        Ok(self.connect().await?.ask(request).await?)
    }

    /// How its workers are.
    pub(super) async fn workers(&self) -> Result<Vec<WorkerInfo>, Failure> {
        workers(self.connect().await?).await
    }

    /// A layout for lines about its workers.
    pub(super) async fn screen(&self, colour: bool, verbose: bool) -> Result<Screen, Failure> {
        let workers = self.workers().await?;
        let looks = workers.iter().map(|worker| (&worker.name, worker.probed));
        Ok(Screen::new(looks, colour, verbose))
    }
}

/// How the workers of a supervisor are.
pub(super) async fn workers(client: Client) -> Result<Vec<WorkerInfo>, Failure> {
    let mut answer = client.ask(Request::Status).await?;
    let mut workers = Vec::new();
    while let Some(reply) = answer.next().await? {
        if let Reply::Worker(worker) = reply {
            workers.push(*worker);
        }
    }
    Ok(workers)
}

/// Runs a command that speaks to a supervisor.
pub(super) fn block_on(command: impl Future<Output = Result<u8, Failure>>) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            say(format_args!("failed to start: {error}"));
            return FAILED;
        }
    };
    let code = runtime.block_on(command).unwrap_or_else(Failure::say);
    // A read of a terminal may be under way in a thread of the runtime; nothing waits for it.
    runtime.shutdown_background();
    code
}

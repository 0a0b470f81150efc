//! `wait`.

use super::{ApiArgs, CLIENT_API, Failure, http::Api, output::print_line, status};
use crate::{
    config::{self, invalid},
    database::types::{DatabaseId, Root},
    documents::{ClientStatus, Status},
    exit,
};
use clap::Args;
use std::{
    collections::VecDeque,
    path::PathBuf,
    time::{Duration, Instant},
};

/// How often is asked.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// How often is asked until both sides were seen at the same commit.
const COMPARE_INTERVAL: Duration = Duration::from_millis(5);
/// For how long that is tried.
const COMPARE_MAX: Duration = Duration::from_secs(5);
/// States of each side that are remembered.
const SEEN_MAX: usize = 256;
/// How long one answer may take, so that one that does not come does not outlast the deadline by much.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Arguments of `wait`.
#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// URL of the client's API
    #[arg(long, env = "SYNCD_API", default_value = CLIENT_API)]
    api: String,
    /// URL of the server's API: wait for the commit that it is at now, and compare database and
    /// root
    #[arg(long, env = "SYNCD_SERVER_API")]
    server_api: Option<String>,
    /// Wait for this size
    #[arg(long, env = "SYNCD_SIZE")]
    size: Option<u64>,
    /// How long at most (like 60s)
    #[arg(long, env = "SYNCD_TIMEOUT", default_value = "60s", value_parser = config::interval)]
    timeout: Duration,
    /// Bearer token, in a file
    #[arg(long, env = "SYNCD_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

/// Waits until the client has caught up. With `--server-api` it is the same database, at the same
/// commit with the same root.
pub(super) fn run(args: &WaitArgs) -> Result<(), Failure> {
    let api = |flag: &'static str, url: &str| {
        let args = ApiArgs {
            api: url.into(),
            token_file: args.token_file.clone(),
            request_timeout: args.timeout.min(ANSWER_MAX),
        };
        Api::to(flag, &args)
    };
    let client = api("--api", &args.api)?;
    let server = args.server_api.as_deref().map(|url| api("--server-api", url)).transpose()?;
    let deadline = Instant::now() + args.timeout;
    let mut wait = Wait::new(client, server, args.size);
    loop {
        let (failure, pause) = match wait.look() {
            Ok(Look::CaughtUp(line)) => return print_line(line),
            Ok(Look::Compare(text)) => (Failure::new(exit::TEMPORARY, text), COMPARE_INTERVAL),
            // What is refused now will be refused later too.
            Err(failure) if failure.code != exit::TEMPORARY => return Err(failure),
            Err(failure) => (failure, ASK_INTERVAL),
        };
        if Instant::now() >= deadline {
            let text = format!("not caught up within {:?}: {failure}", args.timeout);
            return Err(Failure::new(exit::TEMPORARY, text));
        }
        std::thread::sleep(pause);
    }
}

/// A state as an API tells it.
#[derive(Clone, Copy)]
struct State {
    database: DatabaseId,
    size: u64,
    sequence: u64,
    root: Root,
}

impl State {
    /// The state in a status; `None` where there is none yet.
    fn of(status: &Status) -> Option<Self> {
        Some(Self {
            database: status.database?,
            size: status.size,
            sequence: status.sequence,
            root: status.root?,
        })
    }
}

/// What one look found, where nothing is wrong.
enum Look {
    /// The client has what was waited for.
    CaughtUp(String),
    /// It is far enough, but both sides were not yet seen at the same commit.
    Compare(String),
}

/// What is waited for, and what was seen.
struct Wait {
    client: Api,
    server: Option<Api>,
    size: Option<u64>,
    /// The server's state when it first answered.
    target: Option<State>,
    /// Roots by sequence, of both sides.
    theirs: VecDeque<(u64, Root)>,
    ours: VecDeque<(u64, Root)>,
    /// Since when the client is far enough.
    far_enough: Option<Instant>,
}

impl Wait {
    fn new(client: Api, server: Option<Api>, size: Option<u64>) -> Self {
        let (theirs, ours) = (VecDeque::new(), VecDeque::new());
        Self { client, server, size, target: None, theirs, ours, far_enough: None }
    }

    /// Looks once at both sides.
    fn look(&mut self) -> Result<Look, Failure> {
        if let Some(server) = &self.server {
            let state = State::of(&status::ask(server)?).ok_or_else(|| {
                let text = format!("{} has no state yet", server.base());
                Failure::new(exit::TEMPORARY, text)
            })?;
            remember(&mut self.theirs, &state);
            self.target.get_or_insert(state);
        }
        let status = status::ask(&self.client)?;
        let Some(standing) = &status.client else {
            let allowed = format!("the API of a client, like {CLIENT_API}; this is a server's");
            return Err(invalid("--api", self.client.base(), allowed).into());
        };
        let state = State::of(&status);
        if let Some(state) = &state {
            remember(&mut self.ours, state);
            self.check_database(state)?;
        }
        let both = self.seen_at_both()?;
        let state = self.caught_up(standing, state)?;
        let line = format!("{} operations, root {}", state.size, state.root);
        let must_compare = self.size.is_none() && self.server.is_some();
        if !must_compare || both {
            return Ok(Look::CaughtUp(line));
        }
        if self.far_enough.get_or_insert_with(Instant::now).elapsed() >= COMPARE_MAX {
            let why = "roots not compared: the server commits faster than both can be asked";
            return Ok(Look::CaughtUp(format!("{line} ({why})")));
        }
        Ok(Look::Compare(format!("{line}, not yet seen at a commit that the server was seen at")))
    }

    /// The identity says whether the client replicates that server at all.
    fn check_database(&self, state: &State) -> Result<(), Failure> {
        let (Some(server), Some(target)) = (&self.server, &self.target) else { return Ok(()) };
        if state.database == target.database {
            return Ok(());
        }
        let text = format!(
            "{} replicates database {}; {} has database {}",
            self.client.base(),
            state.database,
            server.base(),
            target.database
        );
        Err(Failure::new(exit::DATA, text))
    }

    /// Whether both sides were seen at the same commit, not before the target; their roots are
    /// equal then.
    fn seen_at_both(&self) -> Result<bool, Failure> {
        let Some(target) = &self.target else { return Ok(false) };
        let mut both = false;
        for (sequence, root) in &self.ours {
            let Some((_, other)) = self.theirs.iter().find(|(theirs, _)| theirs == sequence) else {
                continue;
            };
            if root != other {
                let text = format!(
                    "at commit {sequence} the client has root {root}, the server has root {other}: these are two histories"
                );
                return Err(Failure::new(exit::DATA, text));
            }
            both |= *sequence >= target.sequence;
        }
        Ok(both)
    }

    /// The client's state, if that is far enough and lags behind nothing.
    fn caught_up(&self, client: &ClientStatus, state: Option<State>) -> Result<State, Failure> {
        let phase = client.state.as_str();
        let live = phase == "following" || phase == "polling";
        let target = self.target.as_ref();
        let size = self.size.or(target.map(|target| target.size)).unwrap_or(1);
        let sequence = target.filter(|_| self.size.is_none()).map_or(0, |target| target.sequence);
        let has = state.as_ref().map_or(0, |state| state.size);
        match state {
            Some(state)
                if live
                    && client.lag_operations == 0
                    && state.size >= size
                    && state.sequence >= sequence =>
            {
                Ok(state)
            }
            _ => {
                let wanted = client.target_size.max(size);
                let text = format!("{phase}, {has} of {wanted} operations");
                Err(Failure::new(exit::TEMPORARY, text))
            }
        }
    }
}

/// Keeps the newest states of a side.
fn remember(seen: &mut VecDeque<(u64, Root)>, state: &State) {
    if seen
        .back()
        .is_some_and(|(sequence, root)| (*sequence, *root) == (state.sequence, state.root))
    {
        return;
    }
    if seen.len() == SEEN_MAX {
        seen.pop_front();
    }
    seen.push_back((state.sequence, state.root));
}

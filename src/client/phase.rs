//! What a replica is doing, and why it does not advance.

use crate::checkpoint::Refusal;

/// What the client is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Looking for the server.
    Connecting,
    /// Building a new generation.
    StateSync,
    /// Following the log.
    Following,
    /// Between iterations of `--follow poll`.
    Polling,
    /// Connected, but unable to advance.
    Stalled(StallReason),
    /// The server has another database, or lied; the last verified state is served on.
    Refusing(RefusalReason),
}

/// Why a replica that is connected cannot advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallReason {
    /// The server has less history than the replica knows of.
    ServerBehind,
    /// The server no longer holds what is needed.
    Pruned,
    /// The server refuses.
    Rejected,
    /// The only state on offer is too old, or from the future.
    Clock,
    /// The replica's own storage takes nothing.
    Storage,
}

/// Why a server is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// It has another database, family or mode.
    Mismatch,
    /// It showed what is not acceptable.
    Rejected,
    /// Its publisher signed two histories.
    Equivocation,
}

impl From<&Refusal> for RefusalReason {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Equivocation(_) => Self::Equivocation,
            refusal if refusal.is_mismatch() => Self::Mismatch,
            _ => Self::Rejected,
        }
    }
}

impl StallReason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::ServerBehind => "server_behind",
            Self::Pruned => "pruned",
            Self::Rejected => "rejected",
            Self::Clock => "clock",
            Self::Storage => "storage",
        }
    }
}

impl RefusalReason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Mismatch => "mismatch",
            Self::Rejected => "rejected",
            Self::Equivocation => "equivocation",
        }
    }
}

impl Phase {
    /// The word of `GET /v1/status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::StateSync => "state_sync",
            Self::Following => "following",
            Self::Polling => "polling",
            Self::Stalled(_) => "stalled",
            Self::Refusing(_) => "refusing",
        }
    }

    /// The label of `syncd_client_stalled`; `None` while the replica advances.
    pub const fn stall(self) -> Option<&'static str> {
        match self {
            Self::Stalled(reason) => Some(reason.as_str()),
            Self::Refusing(reason) => Some(reason.as_str()),
            Self::Connecting => Some("disconnected"),
            Self::StateSync | Self::Following | Self::Polling => None,
        }
    }

    /// Every word that [`Self::stall`] can give.
    pub const STALLS: [&str; 8] = [
        StallReason::Clock.as_str(),
        RefusalReason::Equivocation.as_str(),
        RefusalReason::Mismatch.as_str(),
        StallReason::Rejected.as_str(),
        StallReason::ServerBehind.as_str(),
        StallReason::Pruned.as_str(),
        StallReason::Storage.as_str(),
        "disconnected",
    ];
}

/// What may end the process, told to whoever runs the replica.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// The server has something else than is wanted, and there is no verified state to serve.
    #[error("{0}")]
    Mismatch(String),
    /// The publisher signed two histories.
    #[error("{0}")]
    Equivocation(Refusal),
}

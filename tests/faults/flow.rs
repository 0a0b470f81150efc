//! Credit, budgets and holds between a server and its replicas.

//! What breaks beside the shim, and what the shim makes of it.
//!
//! `answers` looks at single answers, in this process. The rest is the fault matrix: one table
//! (`table`) of faults, each in the phases in which it can strike, carried out by one driver
//! (`driver`); `row` says how a row is written.

mod answers;
mod book;
mod driver;
mod flood;
mod judge;
mod ledger;
mod load;
mod loads;
mod look;
mod pace;
mod place;
mod process;
mod row;
mod scheduler;
mod server;
mod show;
mod stage;
mod table;
mod tls;
mod watch;

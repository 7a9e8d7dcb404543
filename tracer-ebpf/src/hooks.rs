//! One file per kind of moment; each program reads its arguments and calls the shared handler.

mod understudy;

mod bytes;
mod connect;
mod denial;
mod listen;
mod nginx_log;
mod packet;
mod process;
mod route;
mod selinux;
mod snapshot;
mod state;

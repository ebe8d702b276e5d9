//! Connections to endpoints: opened, sent on, closed. HTTP/1 ones belong to one request at a time and to one worker;
//! HTTP/2 ones carry many and are shared by all.

mod connect;
mod http1;
mod http2;
mod tls;

pub(super) use connect::{Origin, Transport, Way};
pub(super) use http1::{Handed, PooledConnection};
pub(super) use http2::{Mux, MuxStream};

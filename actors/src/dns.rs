//! DnsActor: resolves the guest's questions through the host's resolvers, or those that the spec
//! names.
//!
//! Nobody depends on it. While it is down, [`DnsMailbox`] refuses and the network answers SERVFAIL;
//! questions that die in its queue answer SERVFAIL by the drop of their replier.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use actix::prelude::*;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::{Resolver, TokioResolver};
use iii_net::hickory_proto::op::ResponseCode;
use iii_net::{DnsBusy, DnsQuery, DnsReply, DnsService};
use iii_proto::restart::Exit;

use crate::death_watch::DeathGuard;
use crate::messages::{Halt, InjectPanic, OnUp};
use crate::tree::ChildEnd;

/// One upstream attempt. Two fit into the deadline after which the network loop answers SERVFAIL.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// Questions that wait for the actor. Stops a guest's flood from growing the mailbox; the loop
/// has a cap of its own on what is in flight.
const MAILBOX: usize = 256;

/// Where the network loop puts questions. It outlives the actor behind it.
#[derive(Debug, Default)]
pub(crate) struct DnsMailbox {
    actor: Mutex<Option<Recipient<Question>>>,
}

impl DnsMailbox {
    pub(crate) fn connect(&self, actor: Recipient<Question>) {
        *self.actor.lock().unwrap_or_else(PoisonError::into_inner) = Some(actor);
    }

    pub(crate) fn disconnect(&self) {
        *self.actor.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl DnsService for DnsMailbox {
    fn submit(&self, query: DnsQuery) -> Result<(), DnsBusy> {
        let actor = self.actor.lock().unwrap_or_else(PoisonError::into_inner);
        let actor = actor.as_ref().ok_or(DnsBusy)?;
        actor.try_send(Question(query)).map_err(|_| DnsBusy)
    }
}

/// A guest's question.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Question(DnsQuery);

pub(crate) struct DnsActor {
    servers: Vec<SocketAddr>,
    resolver: Option<Rc<TokioResolver>>,
    on_up: Option<OnUp>,
    // Last: the parent is told when all else is released.
    guard: DeathGuard,
}

impl DnsActor {
    /// `servers`: instead of the host's, unless empty.
    pub(crate) fn new(servers: Vec<SocketAddr>, on_up: OnUp, guard: DeathGuard) -> Self {
        Self {
            servers,
            resolver: None,
            on_up: Some(on_up),
            guard,
        }
    }
}

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let mut builder = if servers.is_empty() {
        Resolver::builder_tokio()?
    } else {
        let servers = servers.iter().map(name_server).collect();
        Resolver::builder_with_config(
            ResolverConfig::from_name_servers(servers),
            TokioRuntimeProvider::default(),
        )
    };
    let options: &mut ResolverOpts = builder.options_mut();
    options.timeout = UPSTREAM_TIMEOUT;
    options.attempts = 1;
    options.edns0 = true;
    // The guest wants to see the CNAMEs.
    options.preserve_intermediates = true;
    // The host's /etc/hosts is the host's business.
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = 512;
    builder.build()
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let with_port = |mut connection: ConnectionConfig| {
        connection.port = address.port();
        connection
    };
    NameServerConfig::new(
        address.ip(),
        true,
        vec![
            with_port(ConnectionConfig::udp()),
            with_port(ConnectionConfig::tcp()),
        ],
    )
}

impl Actor for DnsActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        if let Some(up) = self.on_up.take() {
            up();
        }
    }
}

impl DnsActor {
    /// Made with the first question: a worker that asks none needs no cache. Without a resolver
    /// the actor stops, and the dropped question answers SERVFAIL.
    fn resolver(&mut self, ctx: &mut Context<Self>) -> Option<Rc<TokioResolver>> {
        if self.resolver.is_none() {
            match resolver(&self.servers) {
                Ok(resolver) => self.resolver = Some(Rc::new(resolver)),
                Err(error) => {
                    self.guard.set(ChildEnd::Failed(Exit::Fault {
                        cause: format!("failed to set up the resolver: {error}"),
                    }));
                    ctx.stop();
                }
            }
        }
        self.resolver.clone()
    }
}

impl Handler<Question> for DnsActor {
    type Result = ();

    fn handle(&mut self, Question(query): Question, ctx: &mut Self::Context) {
        let Some(resolver) = self.resolver(ctx) else {
            return;
        };
        // In the context, so that a panic in it is the actor's.
        ctx.spawn(
            async move {
                // A name of the guest is absolute: the host's search list is not for it.
                let mut name = query.name.clone();
                name.set_fqdn(true);
                let result = resolver.lookup(name, query.record_type).await;
                query.replier.reply(reply(result));
            }
            .into_actor(self),
        );
    }
}

fn reply(result: Result<hickory_resolver::lookup::Lookup, NetError>) -> DnsReply {
    let error = match result {
        Ok(lookup) => {
            return DnsReply {
                authorities: lookup.authorities().to_vec(),
                ..DnsReply::answer(lookup.answers().to_vec())
            };
        }
        Err(error) => error,
    };
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => DnsReply {
            authorities: none
                .soa
                .map(|soa| vec![soa.into_record_of_rdata()])
                .unwrap_or_default(),
            ..DnsReply::code(none.response_code)
        },
        NetError::Dns(DnsError::ResponseCode(code)) => DnsReply::code(code),
        error => {
            tracing::debug!(%error, "failed to resolve a guest's question");
            DnsReply::code(ResponseCode::ServFail)
        }
    }
}

impl Handler<Halt> for DnsActor {
    type Result = ();

    fn handle(&mut self, _: Halt, ctx: &mut Self::Context) {
        self.guard.set(ChildEnd::Stopped);
        ctx.stop();
    }
}

impl Handler<InjectPanic> for DnsActor {
    type Result = ();

    fn handle(&mut self, _: InjectPanic, _: &mut Self::Context) {
        panic!("injected fault");
    }
}

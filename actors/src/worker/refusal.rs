//! What a guest's network policy refuses, as an event.

use actix::prelude::*;
use iii_net::Refused;
use iii_net::config::HOST_NAME;

use super::WorkerSupervisor;
use crate::event::EventKind;

/// The guest wanted more than its network policy lets it have.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct PolicyRefusal(pub(super) Refused);

impl Handler<PolicyRefusal> for WorkerSupervisor {
    type Result = ();

    fn handle(&mut self, PolicyRefusal(refused): PolicyRefusal, _: &mut Self::Context) {
        self.emit(event(refused));
    }
}

fn event(refused: Refused) -> EventKind {
    let (protocol, destination) = match refused {
        Refused::Connection(to) => ("tcp", to.to_string()),
        Refused::Datagram(to) => ("udp", to.to_string()),
        Refused::Echo(to) => ("icmp", to.to_string()),
        Refused::HostPort(port) => ("tcp", format!("{HOST_NAME}:{port}")),
        Refused::Name(name) => ("dns", name),
        Refused::More => {
            let message = "its network policy refuses more destinations than are told of";
            return EventKind::Warning {
                message: message.to_owned(),
            };
        }
    };
    EventKind::NetworkRefused {
        protocol: protocol.to_owned(),
        destination,
    }
}

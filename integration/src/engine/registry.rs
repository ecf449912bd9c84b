//! Who is connected, under which name, and which calls are under way. No I/O.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

/// By which a worker says who it is.
const REGISTER: &str = "engine::workers::register";
/// Workers that name none are in this one.
const NAMESPACE: &str = "default";

/// Identifies a connection: its number.
pub type ID = u64;

/// What has happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Happened {
    /// A worker has connected.
    Connected(ID),
    /// It has said its name, and what else it says of itself, and the name is its own.
    Registered {
        /// Which.
        connection: ID,
        /// Its name.
        name: String,
    },
    /// It has said a name that another connection has.
    Refused {
        /// Which.
        connection: ID,
        /// The name.
        name: String,
        /// Whose it is.
        owner: ID,
    },
    /// A function can be called.
    Serves {
        /// Whose it is.
        connection: ID,
        /// Its id.
        id: String,
    },
    /// It has proved that it is the worker of an earlier connection.
    Reattached {
        /// Which.
        connection: ID,
        /// The earlier one.
        previous: ID,
    },
    /// It has sent a ping.
    Pinged(ID),
    /// Telemetry has connected.
    Telemetry,
    /// It has sent what is no message of the protocol.
    Garbage {
        /// Which.
        connection: ID,
        /// It.
        text: String,
    },
    /// Its socket is closed.
    Closed(ID),
}

/// What is to be sent on a connection.
#[derive(Debug)]
pub(super) enum Order {
    /// A message.
    Say(Value),
    /// Nothing more.
    Close,
}

/// Who wants to know what a function returns.
pub(super) enum Caller {
    /// The test.
    Test(UnboundedSender<Result<Value, Value>>),
    /// A worker, who gave its call this id.
    Worker(ID, Value),
    /// Nobody.
    Nobody,
}

struct Call {
    callee: ID,
    caller: Caller,
}

struct Connection {
    orders: UnboundedSender<Order>,
    /// What it says of itself; nothing yet.
    name: Option<String>,
    /// What it has said that it serves before it said its name.
    early: Vec<String>,
}

/// The engine's memory.
#[derive(Default)]
pub(super) struct Registry {
    pub(super) history: Vec<Happened>,
    connections: BTreeMap<ID, Connection>,
    functions: BTreeMap<String, ID>,
    calls: HashMap<String, Call>,
    next: u64,
}

impl Registry {
    /// As after a crash: it knows nobody. Numbers are not given twice, so that no proof of a worker
    /// from before is one.
    pub(super) fn forgetful(self) -> Self {
        Self {
            history: self.history,
            next: self.next,
            ..Self::default()
        }
    }

    /// A socket was accepted; its connection's number.
    pub(super) fn connected(&mut self, orders: UnboundedSender<Order>) -> ID {
        let connection = self.number();
        let greeting = json!({
            "type": "workerregistered",
            "worker_id": uuid(connection),
            "reattach_token": token(connection),
        });
        // Its connection is just being made.
        orders.send(Order::Say(greeting)).unwrap();
        let made = Connection {
            orders,
            name: None,
            early: Vec::new(),
        };
        self.connections.insert(connection, made);
        self.history.push(Happened::Connected(connection));
        connection
    }

    /// A socket is closed: its name and its functions are free, and its calls are lost.
    pub(super) fn closed(&mut self, connection: ID) {
        self.forget(connection);
        self.history.push(Happened::Closed(connection));
    }

    fn forget(&mut self, connection: ID) {
        self.connections.remove(&connection);
        self.functions.retain(|_, owner| *owner != connection);
        self.calls.retain(|_, call| call.callee != connection);
    }

    pub(super) fn happened(&mut self, happened: Happened) {
        self.history.push(happened);
    }

    /// A connection has said something.
    pub(super) fn heard(&mut self, connection: ID, text: &str) {
        // What a retired connection still says is nobody's.
        if !self.connections.contains_key(&connection) {
            return;
        }
        let understood = serde_json::from_str::<Value>(text)
            .ok()
            .and_then(|message| self.understand(connection, &message));
        if understood.is_none() {
            let text = text.to_owned();
            self.history.push(Happened::Garbage { connection, text });
        }
    }

    /// `None`: it is none of the protocol's messages.
    fn understand(&mut self, connection: ID, message: &Value) -> Option<()> {
        let word = |key: &str| message.get(key)?.as_str();
        match word("type")? {
            "registerfunction" => {
                let id = word("id")?.to_owned();
                let known = self.connections.get_mut(&connection)?;
                // Whose they are is known only with the name.
                match known.name {
                    Some(_) => self.serve(connection, id),
                    None => known.early.push(id),
                }
            }
            "unregisterfunction" => {
                let id = word("id")?;
                if self.functions.get(id) == Some(&connection) {
                    self.functions.remove(id);
                }
            }
            "invokefunction" => {
                let function = word("function_id")?;
                let data = message.get("data").cloned().unwrap_or(Value::Null);
                let caller = match message.get("invocation_id") {
                    Some(id) if !id.is_null() => Caller::Worker(connection, id.clone()),
                    _ => Caller::Nobody,
                };
                if function == REGISTER {
                    let name = data.get("name")?.as_str()?.to_owned();
                    self.name(connection, name);
                    self.answer(caller, Ok(Value::Null));
                } else {
                    self.invoke(function, data, caller);
                }
            }
            "invocationresult" => {
                let call = self.calls.remove(word("invocation_id")?)?;
                let result = match message.get("error") {
                    Some(error) if !error.is_null() => Err(error.clone()),
                    _ => Ok(message.get("result").cloned().unwrap_or(Value::Null)),
                };
                self.answer(call.caller, result);
            }
            "reattach" => {
                let previous = word("previous_worker_id")?;
                let proof = word("reattach_token")?;
                let mut known = self.connections.keys().copied();
                let previous = known.find(|id| uuid(*id) == previous);
                // One that is unknown, or gone, is not to be retired.
                if let Some(previous) = previous.filter(|id| token(*id) == proof) {
                    self.say(previous, Order::Close);
                    self.forget(previous);
                    let happened = Happened::Reattached {
                        connection,
                        previous,
                    };
                    self.history.push(happened);
                }
            }
            "ping" => self.say(connection, Order::Say(json!({"type": "pong"}))),
            // Nothing here fires a trigger.
            "pong"
            | "registertrigger"
            | "registertriggertype"
            | "unregistertrigger"
            | "unregistertriggertype"
            | "triggerregistrationresult" => {}
            _ => return None,
        }
        Some(())
    }

    /// A connection says its name.
    fn name(&mut self, connection: ID, name: String) {
        let owner = self.connections.iter().find_map(|(id, other)| {
            (*id != connection && other.name.as_deref() == Some(&name)).then_some(*id)
        });
        if let Some(owner) = owner {
            self.say(
                connection,
                Order::Say(json!({
                    "type": "registrationrejected",
                    "code": "WORKER_NAMESPACE_CONFLICT",
                    "namespace": NAMESPACE,
                    "worker_name": name,
                    "owner_worker_id": uuid(owner),
                })),
            );
            self.say(connection, Order::Close);
            self.history.push(Happened::Refused {
                connection,
                name,
                owner,
            });
            return;
        }
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        let early = std::mem::take(&mut known.early);
        if known.name.replace(name.clone()).is_none() {
            let happened = Happened::Registered { connection, name };
            self.history.push(happened);
        }
        for id in early {
            self.serve(connection, id);
        }
    }

    fn serve(&mut self, connection: ID, id: String) {
        let owner = *self.functions.entry(id.clone()).or_insert(connection);
        if owner == connection {
            self.history.push(Happened::Serves { connection, id });
        } else {
            self.say(
                connection,
                Order::Say(json!({
                    "type": "registrationrejected",
                    "code": "FUNCTION_NAMESPACE_CONFLICT",
                    "namespace": NAMESPACE,
                    "function_id": id,
                    "owner_worker_id": uuid(owner),
                })),
            );
        }
    }

    /// Has a function called.
    pub(super) fn invoke(&mut self, function: &str, data: Value, caller: Caller) {
        let Some(callee) = self.functions.get(function).copied() else {
            let message = format!("no worker serves {function}");
            let error = json!({"code": "function_not_found", "message": message});
            self.answer(caller, Err(error));
            return;
        };
        let id = uuid(self.number());
        let mut message = json!({
            "type": "invokefunction",
            "invocation_id": id,
            "function_id": function,
            "data": data,
        });
        if matches!(caller, Caller::Nobody) {
            message["invocation_id"] = Value::Null;
        } else {
            self.calls.insert(id, Call { callee, caller });
        }
        self.say(callee, Order::Say(message));
    }

    fn answer(&self, caller: Caller, result: Result<Value, Value>) {
        match caller {
            // A test that waits no longer needs no answer.
            Caller::Test(answer) => drop(answer.send(result)),
            Caller::Worker(connection, id) => {
                let mut message = json!({"type": "invocationresult", "invocation_id": id});
                match result {
                    Ok(result) => message["result"] = result,
                    Err(error) => message["error"] = error,
                }
                self.say(connection, Order::Say(message));
            }
            Caller::Nobody => {}
        }
    }

    /// To one that is just closing nothing can be said.
    fn say(&self, connection: ID, order: Order) {
        if let Some(known) = self.connections.get(&connection) {
            drop(known.orders.send(order));
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// A number in the form that the SDKs demand of ids.
fn uuid(number: u64) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

fn token(connection: ID) -> String {
    format!("token-{connection}")
}

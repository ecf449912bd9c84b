use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::*;

struct Client(WebSocketStream<TcpStream>);

impl Client {
    async fn connect(engine: &Engine) -> Self {
        let mut client = Self::at(engine, "/").await;
        assert_eq!(client.hear().await["type"], "workerregistered");
        client
    }

    async fn at(engine: &Engine, path: &str) -> Self {
        let stream = TcpStream::connect(engine.address()).await.unwrap();
        let url = format!("{}{path}", engine.url());
        Self(client_async(url, stream).await.unwrap().0)
    }

    async fn say(&mut self, message: Value) {
        let message = Message::text(message.to_string());
        self.0.send(message).await.unwrap();
    }

    async fn name(&mut self, name: &str) {
        let data = json!({"name": name});
        let function = "engine::workers::register";
        self.say(json!({"type": "invokefunction", "function_id": function, "data": data}))
            .await;
    }

    async fn hear(&mut self) -> Value {
        let message = self.0.next().await.unwrap().unwrap();
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    }

    async fn is_closed(&mut self) -> bool {
        matches!(
            self.0.next().await,
            None | Some(Err(_) | Ok(Message::Close(_)))
        )
    }
}

#[tokio::test]
async fn a_name_is_refused_while_its_socket_is_open_and_free_at_its_end() {
    let engine = Engine::start();
    let mut first = Client::connect(&engine).await;
    first.name("api").await;
    let (owner, _) = engine.registered(0, "api").await;

    let mut second = Client::connect(&engine).await;
    second.name("api").await;
    let rejection = second.hear().await;
    assert_eq!(rejection["code"], "WORKER_NAMESPACE_CONFLICT");
    assert_eq!(rejection["worker_name"], "api");
    assert!(second.is_closed().await);
    let refused = |happened: &Happened| match happened {
        Happened::Refused { owner, .. } => Some(*owner),
        _ => None,
    };
    assert_eq!(engine.until(0, "refusal", refused).await.0, owner);

    // Without a word: as it is when a peer's machine is gone and its gateway closes for it.
    drop(first);
    let from = engine.mark();
    let closed = |happened: &Happened| (*happened == Happened::Closed(owner)).then_some(());
    engine.until(0, "end of the first", closed).await;
    let mut third = Client::connect(&engine).await;
    third.name("api").await;
    engine.registered(from, "api").await;
}

#[tokio::test]
async fn calls_reach_who_serves_them_and_answers_come_back() {
    let engine = Engine::start();
    let error = engine.call("a::f", Value::Null).await.unwrap_err();
    assert_eq!(error["code"], "function_not_found");

    let mut server = Client::connect(&engine).await;
    // In the order in which some SDKs do it: functions before the name.
    server
        .say(json!({"type": "registerfunction", "id": "a::f"}))
        .await;
    server.name("a").await;
    engine.serves(0, "a::f").await;
    let mut caller = Client::connect(&engine).await;
    caller.name("b").await;
    caller
        .say(json!({"type": "invokefunction", "invocation_id": "mine", "function_id": "a::f", "data": 1}))
        .await;
    let asked = server.hear().await;
    assert_eq!(
        (&asked["function_id"], &asked["data"]),
        (&json!("a::f"), &json!(1))
    );
    let id = &asked["invocation_id"];
    server
        .say(json!({"type": "invocationresult", "invocation_id": id, "function_id": "a::f", "result": 2}))
        .await;
    let answer = caller.hear().await;
    assert_eq!(
        (&answer["invocation_id"], &answer["result"]),
        (&json!("mine"), &json!(2))
    );

    let from_test = engine.call("a::f", json!("x"));
    let serving = async {
        let id = server.hear().await["invocation_id"].clone();
        let error = json!({"code": "c", "message": "m"});
        server
            .say(json!({"type": "invocationresult", "invocation_id": id, "error": error}))
            .await;
    };
    let (result, ()) = tokio::join!(from_test, serving);
    assert_eq!(result.unwrap_err()["message"], "m");
    // One owner per function.
    caller
        .say(json!({"type": "registerfunction", "id": "a::f"}))
        .await;
    assert_eq!(caller.hear().await["code"], "FUNCTION_NAMESPACE_CONFLICT");
}

#[tokio::test]
async fn who_reconnects_with_its_token_retires_its_own_predecessor() {
    let engine = Engine::start();
    let mut first = Client::at(&engine, "/").await;
    let greeting = first.hear().await;
    first.name("api").await;
    let (owner, from) = engine.registered(0, "api").await;
    for (token, accepted) in [
        (json!("guessed"), false),
        (greeting["reattach_token"].clone(), true),
    ] {
        let mut second = Client::connect(&engine).await;
        second
            .say(json!({
                "type": "reattach",
                "previous_worker_id": greeting["worker_id"],
                "reattach_token": token,
            }))
            .await;
        second.name("api").await;
        if accepted {
            engine.registered(from, "api").await;
            assert!(first.is_closed().await);
        } else {
            assert_eq!(second.hear().await["code"], "WORKER_NAMESPACE_CONFLICT");
        }
    }
    drop(first);
    let closed = |happened: &Happened| (*happened == Happened::Closed(owner)).then_some(());
    engine.until(from, "end of the first", closed).await;
}

#[tokio::test]
async fn a_crash_ends_all_sockets_and_other_paths_than_its_own_are_refused() {
    let mut engine = Engine::start();
    let mut client = Client::connect(&engine).await;
    let mut telemetry = Client::at(&engine, "/otel").await;
    engine.restart();
    assert!(client.is_closed().await && telemetry.is_closed().await);
    let mut again = Client::connect(&engine).await;
    again.say(json!({"type": "nonsense"})).await;
    let garbage = |happened: &Happened| matches!(happened, Happened::Garbage { .. }).then_some(());
    engine.until(0, "nonsense", garbage).await;
    let stream = TcpStream::connect(engine.address()).await.unwrap();
    let url = format!("{}/other", engine.url());
    assert!(client_async(url, stream).await.is_err());
}

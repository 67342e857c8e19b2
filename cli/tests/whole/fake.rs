//! A small stand-in for agent or aggregator: it answers the paths that it was given, and nothing else.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use nodewhy_proto::Problem;
use serde::Serialize;
use tokio::net::UnixListener;

/// What is answered, by path and query.
#[derive(Clone, Default)]
pub(crate) struct Fake {
    answers: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Fake {
    pub(crate) fn answer(&self, path: &str, document: &impl Serialize) -> &Fake {
        let text = serde_json::to_string(document).unwrap();
        self.answers.lock().unwrap().insert(path.to_owned(), text);
        self
    }

    /// Serves on a thread of its own until the process ends.
    pub(crate) fn serve(&self, socket: PathBuf) {
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let fake = self.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = UnixListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let fake = fake.clone();
                    tokio::spawn(async move {
                        let service = service_fn(move |request| {
                            let response = fake.respond(&request);
                            async move { Ok::<_, std::convert::Infallible>(response) }
                        });
                        let served = hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                        drop(served);
                    });
                }
            });
        });
    }

    fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        match self.answers.lock().unwrap().get(&path) {
            Some(text) => Response::new(Full::from(text.clone())),
            None => {
                let problem = Problem::new(404, "Not Found", format!("there is nothing at {path}"));
                let mut response = Response::new(Full::from(serde_json::to_string(&problem).unwrap()));
                *response.status_mut() = hyper::StatusCode::NOT_FOUND;
                response
            }
        }
    }
}

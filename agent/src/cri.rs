//! The CRI v1 service as a client: messages of `k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`, written by hand.
//!
//! Fields that nobody here reads are left out: protobuf skips what it does not know. So no protoc is needed to
//! build, and a newer runtime's answer is read all the same. The client only asks; nothing here can change a pod.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::io;

use hyper::http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

/// An answer larger than this is refused. 1,000 containers with long labels take about 1 MiB.
const LARGEST_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// `VersionRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VersionRequest {
    /// The kubelet's API version; runtimes ignore it.
    #[prost(string, tag = "1")]
    pub version: String,
}

/// `VersionResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VersionResponse {
    /// `containerd`, `cri-o`.
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    /// `1.6.20`, with the distribution's suffix.
    #[prost(string, tag = "3")]
    pub runtime_version: String,
    /// `v1`.
    #[prost(string, tag = "4")]
    pub runtime_api_version: String,
}

/// `StatusRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusRequest {
    /// Whether `info` is wanted too.
    #[prost(bool, tag = "1")]
    pub verbose: bool,
}

/// `StatusResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusResponse {
    /// Conditions.
    #[prost(message, optional, tag = "1")]
    pub status: Option<RuntimeStatus>,
    /// The runtime's own words. containerd: `config` (may hold registry passwords: never shown),
    /// `lastCNILoadStatus`, `lastCNILoadStatus.default`, `golang`.
    #[prost(map = "string, string", tag = "2")]
    pub info: HashMap<String, String>,
}

/// `RuntimeStatus`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeStatus {
    /// `RuntimeReady`, `NetworkReady`.
    #[prost(message, repeated, tag = "1")]
    pub conditions: Vec<RuntimeCondition>,
}

/// `RuntimeCondition`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeCondition {
    /// `RuntimeReady` or `NetworkReady`.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// Whether it holds.
    #[prost(bool, tag = "2")]
    pub status: bool,
    /// One word, where it does not hold.
    #[prost(string, tag = "3")]
    pub reason: String,
    /// For people.
    #[prost(string, tag = "4")]
    pub message: String,
}

/// `ListPodSandboxRequest` and `ListContainersRequest`, both without a filter: all of them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListRequest {}

/// `ListPodSandboxResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListPodSandboxResponse {
    /// The sandboxes.
    #[prost(message, repeated, tag = "1")]
    pub items: Vec<PodSandbox>,
}

/// `PodSandbox`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSandbox {
    /// Its id: 64 hex digits.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Whose it is.
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<PodSandboxMetadata>,
    /// `SANDBOX_READY` 0, `SANDBOX_NOTREADY` 1.
    #[prost(int32, tag = "3")]
    pub state: i32,
    /// The kubelet's: `io.kubernetes.pod.name`, `.namespace`, `.uid`.
    #[prost(map = "string, string", tag = "5")]
    pub labels: HashMap<String, String>,
}

/// `PodSandboxMetadata`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSandboxMetadata {
    /// The pod's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The pod's UID.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// The pod's namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
}

/// `PodSandboxStatusRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSandboxStatusRequest {
    /// Which.
    #[prost(string, tag = "1")]
    pub pod_sandbox_id: String,
    /// Whether `info` is wanted too: containerd then asks the pod's shim.
    #[prost(bool, tag = "2")]
    pub verbose: bool,
}

/// `PodSandboxStatusResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSandboxStatusResponse {
    /// The runtime's own words: `info` is JSON with the sandbox' pid, its network namespace, the result of CNI.
    #[prost(map = "string, string", tag = "2")]
    pub info: HashMap<String, String>,
}

/// `ContainerStatusRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerStatusRequest {
    /// Which.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// `ContainerStatusResponse`: that it comes is what matters.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerStatusResponse {}

/// `RuntimeConfigRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeConfigRequest {}

/// `RuntimeConfigResponse`; containerd has it since 2.0, CRI-O since 1.28.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeConfigResponse {
    /// Of Linux.
    #[prost(message, optional, tag = "1")]
    pub linux: Option<LinuxRuntimeConfiguration>,
}

/// `LinuxRuntimeConfiguration`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxRuntimeConfiguration {
    /// `SYSTEMD` 0, `CGROUPFS` 1.
    #[prost(int32, tag = "1")]
    pub cgroup_driver: i32,
}

/// `ListImagesResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListImagesResponse {
    /// The images.
    #[prost(message, repeated, tag = "1")]
    pub images: Vec<Image>,
}

/// `Image`, as far as it is counted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Image {
    /// Its size; layers that images share are counted in each.
    #[prost(uint64, tag = "4")]
    pub size_bytes: u64,
}

/// `ListContainersResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListContainersResponse {
    /// The containers.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<Container>,
}

/// `Container`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Container {
    /// Its id: 64 hex digits.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its sandbox.
    #[prost(string, tag = "2")]
    pub pod_sandbox_id: String,
    /// Its name.
    #[prost(message, optional, tag = "3")]
    pub metadata: Option<ContainerMetadata>,
    /// `CONTAINER_CREATED` 0, `CONTAINER_RUNNING` 1, `CONTAINER_EXITED` 2, `CONTAINER_UNKNOWN` 3.
    #[prost(int32, tag = "6")]
    pub state: i32,
    /// The kubelet's: `io.kubernetes.container.name`, `io.kubernetes.pod.uid`.
    #[prost(map = "string, string", tag = "8")]
    pub labels: HashMap<String, String>,
}

/// `ContainerMetadata`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerMetadata {
    /// Its name in the pod.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// Why a call has no good answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CallError {
    /// The server answered, with an error.
    #[error("the server answered {code:?}: {message}")]
    Answered {
        /// gRPC's code.
        code: Code,
        /// The server's words.
        message: String,
    },
    /// There was no connection, it broke, or what came is not gRPC.
    #[error("{0}")]
    Broken(String),
    /// It was given up.
    #[error("no answer in {0} seconds: given up, as the kubelet does")]
    GivenUp(u64),
}

/// A client over one connection, which is made when first needed, and anew when it broke.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// A client whose connections come from `connect`. Nothing is connected yet. Must be called within tokio.
    pub fn new<F>(connect: impl Fn() -> F + Send + Sync + 'static) -> Client
    where
        F: Future<Output = io::Result<UnixStream>> + Send + 'static,
    {
        let connector = tower::service_fn(move |_: Uri| {
            let connecting = connect();
            async move { connecting.await.map(TokioIo::new) }
        });
        // Never the socket's path: h2 servers refuse such an authority.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Client { channel }
    }

    /// Who the runtime is.
    ///
    /// # Errors
    /// Broken, or answered with an error: `Unimplemented` where the peer does not serve CRI v1.
    pub async fn version(&self) -> Result<VersionResponse, CallError> {
        self.call("/runtime.v1.RuntimeService/Version", VersionRequest { version: "v1".to_owned() }).await
    }

    /// Conditions and `info`.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub async fn status(&self) -> Result<StatusResponse, CallError> {
        self.call("/runtime.v1.RuntimeService/Status", StatusRequest { verbose: true }).await
    }

    /// All sandboxes.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub async fn list_pod_sandbox(&self) -> Result<ListPodSandboxResponse, CallError> {
        self.call("/runtime.v1.RuntimeService/ListPodSandbox", ListRequest {}).await
    }

    /// All containers.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub async fn list_containers(&self) -> Result<ListContainersResponse, CallError> {
        self.call("/runtime.v1.RuntimeService/ListContainers", ListRequest {}).await
    }

    /// One sandbox, with the runtime's own words.
    ///
    /// # Errors
    /// As [`Client::version`]; `NotFound` where it has gone.
    pub async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatusResponse, CallError> {
        let question = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        self.call("/runtime.v1.RuntimeService/PodSandboxStatus", question).await
    }

    /// One container.
    ///
    /// # Errors
    /// As [`Client::pod_sandbox_status`].
    pub async fn container_status(&self, id: &str) -> Result<ContainerStatusResponse, CallError> {
        let question = ContainerStatusRequest { container_id: id.to_owned() };
        self.call("/runtime.v1.RuntimeService/ContainerStatus", question).await
    }

    /// The cgroup driver.
    ///
    /// # Errors
    /// As [`Client::version`]; older runtimes do not know the call.
    pub async fn runtime_config(&self) -> Result<RuntimeConfigResponse, CallError> {
        self.call("/runtime.v1.RuntimeService/RuntimeConfig", RuntimeConfigRequest {}).await
    }

    /// All images.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub async fn list_images(&self) -> Result<ListImagesResponse, CallError> {
        self.call("/runtime.v1.ImageService/ListImages", ListRequest {}).await
    }

    async fn call<Q, A>(&self, path: &'static str, question: Q) -> Result<A, CallError>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc =
            tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST_ANSWER_BYTES);
        grpc.ready().await.map_err(|error| CallError::Broken(chain(&error)))?;
        let codec = ProstCodec::<Q, A>::default();
        match grpc.unary(Request::new(question), PathAndQuery::from_static(path), codec).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(told(&status)),
        }
    }
}

/// A status that the transport made of its own trouble has a source; one that the server sent has none.
fn told(status: &Status) -> CallError {
    match status.source() {
        Some(source) => CallError::Broken(chain(source)),
        None => CallError::Answered { code: status.code(), message: status.message().to_owned() },
    }
}

/// An error with those beneath it: the outermost of tonic's says only "transport error".
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    /// What containerd 1.6.20 (Debian 12) says without a CNI configuration, in its order.
    fn without_network() -> StatusResponse {
        let ready =
            RuntimeCondition { r#type: "RuntimeReady".to_owned(), status: true, ..Default::default() };
        let network = RuntimeCondition {
            r#type: "NetworkReady".to_owned(),
            status: false,
            reason: "NetworkPluginNotReady".to_owned(),
            message: "Network plugin returns error: cni plugin not initialized".to_owned(),
        };
        StatusResponse {
            status: Some(RuntimeStatus { conditions: vec![ready, network] }),
            info: HashMap::from([("lastCNILoadStatus".to_owned(), "cni config load failed".to_owned())]),
        }
    }

    #[test]
    fn every_prefix_says_what_the_whole_says_or_nothing() {
        let whole = without_network();
        let bytes = whole.encode_to_vec();
        for cut in 0..bytes.len() {
            if let Ok(StatusResponse { status: Some(status), .. }) = StatusResponse::decode(&bytes[..cut]) {
                assert_eq!(Some(status), whole.status);
            }
        }
    }

    #[test]
    fn fields_of_a_newer_runtime_are_skipped() {
        // Field 15, a string: nobody knows it yet.
        let bytes = [without_network().encode_to_vec(), vec![0x7a, 3, b'n', b'e', b'w']].concat();
        assert_eq!(StatusResponse::decode(bytes.as_slice()), Ok(without_network()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            StatusResponse::decode(bytes.as_slice()).ok();
            ListContainersResponse::decode(bytes.as_slice()).ok();
        }
    }
}

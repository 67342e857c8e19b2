//! That part of CRI v1 with which a kubelet makes pods: messages of `k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`,
//! written by hand. Fields that nothing here sets or reads are left out.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use hyper::http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_prost::ProstCodec;

/// How long one call may take. The node is emulated, and may be sick.
const DEADLINE: Duration = Duration::from_secs(60);

/// `NamespaceMode`.
pub mod namespace {
    /// `POD`: the pod's own.
    pub const POD: i32 = 0;
    /// `CONTAINER`: the container's own.
    pub const CONTAINER: i32 = 1;
    /// `NODE`: the host's.
    pub const NODE: i32 = 2;
}

/// Declares messages: the name as in api.proto, and each field with its number there.
macro_rules! messages {
    ($($(#[$about:meta])* $name:ident { $($field:ident: $type:ty = $number:literal ($($kind:tt)+),)* })*) => {
        $($(#[$about])*
        #[derive(Clone, PartialEq, Message)]
        #[allow(missing_docs, reason = "api.proto documents the fields")]
        pub struct $name {
            $(#[prost($($kind)+, tag = $number)] pub $field: $type,)*
        })*
    };
}

messages! {
    /// `PodSandboxMetadata`.
    PodSandboxMetadata {
        name: String = "1" (string),
        uid: String = "2" (string),
        namespace: String = "3" (string),
        attempt: u32 = "4" (uint32),
    }
    /// `PodSandboxConfig`.
    PodSandboxConfig {
        metadata: Option<PodSandboxMetadata> = "1" (message, optional),
        hostname: String = "2" (string),
        log_directory: String = "3" (string),
        dns_config: Option<DnsConfig> = "4" (message, optional),
        labels: HashMap<String, String> = "6" (map = "string, string"),
        annotations: HashMap<String, String> = "7" (map = "string, string"),
        linux: Option<LinuxPodSandboxConfig> = "8" (message, optional),
    }
    /// `DNSConfig`.
    DnsConfig {
        servers: Vec<String> = "1" (string, repeated),
        searches: Vec<String> = "2" (string, repeated),
        options: Vec<String> = "3" (string, repeated),
    }
    /// `LinuxPodSandboxConfig`.
    LinuxPodSandboxConfig {
        cgroup_parent: String = "1" (string),
        security_context: Option<LinuxSandboxSecurityContext> = "2" (message, optional),
    }
    /// `LinuxSandboxSecurityContext`.
    LinuxSandboxSecurityContext {
        namespace_options: Option<NamespaceOption> = "1" (message, optional),
        readonly_rootfs: bool = "4" (bool),
        privileged: bool = "6" (bool),
        seccomp: Option<SecurityProfile> = "9" (message, optional),
    }
    /// `NamespaceOption`; the numbers are those of [`namespace`].
    NamespaceOption {
        network: i32 = "1" (int32),
        pid: i32 = "2" (int32),
        ipc: i32 = "3" (int32),
    }
    /// `SecurityProfile`: `RuntimeDefault` 0, `Unconfined` 1.
    SecurityProfile {
        profile_type: i32 = "1" (int32),
    }
    /// `RunPodSandboxRequest`.
    RunPodSandboxRequest {
        config: Option<PodSandboxConfig> = "1" (message, optional),
    }
    /// `RunPodSandboxResponse`; also the shape of every request that names one sandbox.
    PodSandboxId {
        pod_sandbox_id: String = "1" (string),
    }
    /// `PodSandboxFilter`.
    Filter {
        label_selector: HashMap<String, String> = "3" (map = "string, string"),
    }
    /// `ListPodSandboxRequest`.
    ListPodSandboxRequest {
        filter: Option<Filter> = "1" (message, optional),
    }
    /// `PodSandbox`.
    PodSandbox {
        id: String = "1" (string),
        metadata: Option<PodSandboxMetadata> = "2" (message, optional),
        state: i32 = "3" (int32),
        labels: HashMap<String, String> = "5" (map = "string, string"),
    }
    /// `ListPodSandboxResponse`.
    ListPodSandboxResponse {
        items: Vec<PodSandbox> = "1" (message, repeated),
    }
    /// `ContainerMetadata`.
    ContainerMetadata {
        name: String = "1" (string),
        attempt: u32 = "2" (uint32),
    }
    /// `ImageSpec`.
    ImageSpec {
        image: String = "1" (string),
    }
    /// `KeyValue`. On the wire the newest api.proto's `bytes` is the older ones' `string`.
    KeyValue {
        key: String = "1" (string),
        value: String = "2" (string),
    }
    /// `Mount`; `PROPAGATION_PRIVATE` 0, `HOST_TO_CONTAINER` 1, `BIDIRECTIONAL` 2.
    Mount {
        container_path: String = "1" (string),
        host_path: String = "2" (string),
        readonly: bool = "3" (bool),
        propagation: i32 = "5" (int32),
    }
    /// `Capability`.
    Capability {
        add_capabilities: Vec<String> = "1" (string, repeated),
        drop_capabilities: Vec<String> = "2" (string, repeated),
    }
    /// `Int64Value`.
    Int64Value {
        value: i64 = "1" (int64),
    }
    /// `LinuxContainerSecurityContext`.
    LinuxContainerSecurityContext {
        capabilities: Option<Capability> = "1" (message, optional),
        privileged: bool = "2" (bool),
        namespace_options: Option<NamespaceOption> = "3" (message, optional),
        run_as_user: Option<Int64Value> = "5" (message, optional),
        readonly_rootfs: bool = "7" (bool),
        no_new_privs: bool = "11" (bool),
        masked_paths: Vec<String> = "13" (string, repeated),
        readonly_paths: Vec<String> = "14" (string, repeated),
        seccomp: Option<SecurityProfile> = "15" (message, optional),
    }
    /// `LinuxContainerResources`. 0 is: not limited.
    LinuxContainerResources {
        cpu_period: i64 = "1" (int64),
        cpu_quota: i64 = "2" (int64),
        cpu_shares: i64 = "3" (int64),
        memory_limit_in_bytes: i64 = "4" (int64),
        oom_score_adj: i64 = "5" (int64),
        unified: HashMap<String, String> = "9" (map = "string, string"),
    }
    /// `LinuxContainerConfig`.
    LinuxContainerConfig {
        resources: Option<LinuxContainerResources> = "1" (message, optional),
        security_context: Option<LinuxContainerSecurityContext> = "2" (message, optional),
    }
    /// `ContainerConfig`.
    ContainerConfig {
        metadata: Option<ContainerMetadata> = "1" (message, optional),
        image: Option<ImageSpec> = "2" (message, optional),
        command: Vec<String> = "3" (string, repeated),
        args: Vec<String> = "4" (string, repeated),
        working_dir: String = "5" (string),
        envs: Vec<KeyValue> = "6" (message, repeated),
        mounts: Vec<Mount> = "7" (message, repeated),
        labels: HashMap<String, String> = "9" (map = "string, string"),
        annotations: HashMap<String, String> = "10" (map = "string, string"),
        log_path: String = "11" (string),
        linux: Option<LinuxContainerConfig> = "15" (message, optional),
    }
    /// `CreateContainerRequest`.
    CreateContainerRequest {
        pod_sandbox_id: String = "1" (string),
        config: Option<ContainerConfig> = "2" (message, optional),
        sandbox_config: Option<PodSandboxConfig> = "3" (message, optional),
    }
    /// `CreateContainerResponse`; also the shape of `StartContainerRequest` and `RemoveContainerRequest`.
    ContainerId {
        container_id: String = "1" (string),
    }
    /// `StopContainerRequest`: SIGTERM, and after so many seconds SIGKILL.
    StopContainerRequest {
        container_id: String = "1" (string),
        timeout: i64 = "2" (int64),
    }
    /// `ContainerFilter`.
    ContainerFilter {
        pod_sandbox_id: String = "3" (string),
    }
    /// `ListContainersRequest`.
    ListContainersRequest {
        filter: Option<ContainerFilter> = "1" (message, optional),
    }
    /// `Container`; `CONTAINER_CREATED` 0, `RUNNING` 1, `EXITED` 2, `UNKNOWN` 3.
    Container {
        id: String = "1" (string),
        pod_sandbox_id: String = "2" (string),
        metadata: Option<ContainerMetadata> = "3" (message, optional),
        state: i32 = "6" (int32),
        labels: HashMap<String, String> = "8" (map = "string, string"),
    }
    /// `ListContainersResponse`.
    ListContainersResponse {
        containers: Vec<Container> = "1" (message, repeated),
    }
    /// `ContainerStatusRequest`.
    ContainerStatusRequest {
        container_id: String = "1" (string),
        verbose: bool = "2" (bool),
    }
    /// `ContainerStatusResponse`: `info` has the runtime's own words; containerd's `info` is a JSON document with `pid`.
    ContainerStatusResponse {
        info: HashMap<String, String> = "2" (map = "string, string"),
    }
    /// An answer that says nothing.
    Nothing {}
}

/// A client of the runtime.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    socket: PathBuf,
}

impl Client {
    /// A client of this socket. Must be called within tokio; connects when first asked.
    pub fn new(socket: &Path) -> Client {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // Never the socket's path: h2 servers refuse such an authority.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Client { channel, socket: socket.to_owned() }
    }

    /// Calls a method of `runtime.v1.RuntimeService`, by its name there, and waits at most a minute.
    ///
    /// # Errors
    /// No answer, or an error for an answer.
    pub async fn call<Q, A>(&self, method: &str, question: Q) -> anyhow::Result<A>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}"))?;
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        let codec = ProstCodec::<Q, A>::default();
        let calling = async {
            grpc.ready().await?;
            Ok::<A, anyhow::Error>(grpc.unary(tonic::Request::new(question), path, codec).await?.into_inner())
        };
        let asked = || format!("ask {} for {method}", self.socket.display());
        let answer = tokio::time::timeout(DEADLINE, calling).await;
        answer.with_context(|| format!("{}: no answer in {DEADLINE:?}", asked()))?.with_context(asked)
    }
}

use std::time::Duration;

/// How long things may take. The defaults are for production; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// The pause before the first new try, after an agent or the API server failed. It doubles, with jitter.
    pub backoff_min: Duration,
    /// The longest such pause.
    pub backoff_max: Duration,
    /// How long one request may go unanswered.
    pub answer: Duration,
    /// Seconds between two looks at an agent's `/api/v1/state`.
    pub state_every: Duration,
    /// An event stream without a byte for so long is broken: the agent writes a comment every 10 s.
    pub stream_silence: Duration,
    /// How long the API server is asked to keep a watch open. Each new watch proves that our view is alive.
    pub watch: Duration,
    /// A broken view of the API server that is older than this says nothing about now.
    pub view_old: Duration,
    /// Every node is judged at least so often: ages grow without an event.
    pub evaluate_every: Duration,
    /// After a wake, how long to gather further ones before judging.
    pub debounce: Duration,
    /// An incident ends when all has been well for so long.
    pub settle: Duration,
    /// How long a conclusion must stay weaker than the recorded one before it is recorded: between the fault's
    /// end and the kubelet's next post, the evidence is over and Ready is still False.
    pub fade: Duration,
    /// How far back a case looks from now, or from its incident's beginning.
    pub window: Duration,
    /// A Lease whose `renewTime` is older than this is stale: the kubelet's lease lasts 40 s, and is renewed
    /// every 10 s.
    pub lease_stale: Duration,
}

impl Default for Timings {
    fn default() -> Timings {
        Timings {
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(5),
            answer: Duration::from_secs(5),
            state_every: Duration::from_secs(5),
            stream_silence: Duration::from_secs(30),
            watch: Duration::from_secs(15),
            view_old: Duration::from_secs(40),
            evaluate_every: Duration::from_secs(5),
            debounce: Duration::from_millis(20),
            settle: Duration::from_secs(10),
            fade: Duration::from_secs(60),
            window: Duration::from_secs(15 * 60),
            lease_stale: Duration::from_secs(40),
        }
    }
}

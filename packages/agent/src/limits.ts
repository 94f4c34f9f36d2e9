/** Attempts to freeze a container whose processes do not stop in time, and the wait after the first; longer after each. Milliseconds. */
export const pauseAttempts = 5;
export const pauseRetryMs = 100;
/** How long the network of a sandbox that has ended waits for the last bytes of its connections to be read. Milliseconds; then they are lost. */
export const lastBytesMs = 2_000;
/** Operations that may wait on one sandbox; one more is refused with queue-full. */
export const maxOperationsPerSandbox = 64;
/** Default limit of processes and threads of a sandbox. */
export const defaultPids = 4096;

/** Memory that a sandbox's limit is raised by for its init (a Node process: 45 to 60 MB resident, with room for its sessions). Bytes. */
export const initMemoryAllowance = 96 * 1024 * 1024;
/** Processes and threads that a sandbox's limit is raised by for its init: Node's main thread, pool and V8 workers. */
export const initPidsAllowance = 16;
/** First uid and gid on the host that sandboxes' user namespaces map to. */
export const uidRangeBase = 1_000_000_000;
/** Ids per sandbox; 65,536 hold every id that images use. */
export const uidRangeSize = 65_536;
/** Sandboxes with a user namespace on one host; one more is refused with no-room. */
export const uidRangeCount = 16_384;
/** User namespaces made in advance of the creates that will use them. */
export const warmUserNamespaces = 16;
/** How long a path of the host outside the agent's directory may take to respond; then what needs it fails with unavailable. Milliseconds. */
export const foreignMs = 5_000;
/** What is read of the file with registry credentials. No more than `programOutputBytes`. Bytes. */
export const maxCredentialsBytes = 64 * 1024;
/** Paths of the host that may hang at the same time, each with a program; with one more, no further path is touched. */
export const maxStuckPrograms = 16;
/** How long mkfs.ext4 may take, which may wait for a busy disk; then it is killed and the operation fails. Milliseconds. */
export const formatDiskMs = 120_000;
/** The smallest disk: ext4 needs some room of its own. Bytes. */
export const minDiskBytes = 16 * 1024 * 1024;
/** How long the OCI runtime program may take for one command; then it is killed and the operation fails. Milliseconds. */
export const runtimeProgramMs = 30_000;
/**
 * Sandboxes between the start of their init and that of their command at the same time, for each CPU of the host. Further ones wait, in the
 * order in which they came: concurrently all of them would finish late.
 */
export const startsPerCpu = 1.5;
/** How long a start whose command does not begin delays others. Milliseconds. */
export const startPermitMs = 5_000;
/** How often a start is checked for its command. Milliseconds. */
export const startPollMs = 25;
/** Default of --standbys: one standby for so many bytes of the host's memory, and at most `maxDefaultStandbys`. */
export const memoryPerStandby = 2 * 1024 ** 3;
export const maxDefaultStandbys = 16;
/** Memory that a host sets aside for each standby of --standbys, and does not offer to sandboxes. Bytes; measured (docs/benchmarks.md). */
export const standbyMemoryBytes = 20 * 1024 ** 2;
/** The largest number of creates within this time, over the last `standbyDemandMs`, is the number of standbys that a host keeps. Milliseconds. */
export const standbyBurstMs = 10_000;
/** A burst of creates raises the number of standbys for so long; without one it is a quarter of --standbys. Milliseconds. */
export const standbyDemandMs = 600_000;
/** How often the number of standbys is reviewed without a create. Milliseconds. */
export const standbyReviewMs = 60_000;
/** Creates whose times count for the number of standbys; the oldest are dropped. */
export const maxRecentCreates = 1_024;
/** Pause between the last start of a sandbox and making the next standby, which would take CPU from the start. Milliseconds. */
export const standbyRestMs = 500;
/** How long a standby may take until it is ready; then it is removed. Milliseconds. */
export const standbyReadyMs = 20_000;
/** How often a standby is checked for being ready. Milliseconds. */
export const standbyPollMs = 25;
/** Backoff after a standby could not be made, with full jitter: first and largest. Milliseconds. */
export const standbyRetryMs = 2_000;
export const standbyRetryCapMs = 300_000;
/** How long a dial waits for init to listen; then it fails with unavailable. Milliseconds. */
export const initDialMs = 10_000;
/** How long a dial waits for init to take its config, which it does just before it listens, until it tries all the same. Milliseconds. */
export const initTakesConfigMs = 50;
/** How long one TCP connect into a sandbox may take. Milliseconds. */
export const sandboxConnectMs = 5_000;
/** How often the processes of sandboxes with a waiter are polled. Milliseconds. */
export const exitPollMs = 1_000;
/** The largest exit.json that is read; a larger one counts as none. Bytes. */
export const maxExitRecordBytes = 64 * 1024;
/** Memory of /dev/shm without --shm-size; more fails inside with ENOSPC. Bytes. */
export const sharedMemoryBytes = 64 * 1024 * 1024;
/** Files that /dev and /dev/shm may each have; more fail inside with ENOSPC. A file without content takes kernel memory too. */
export const tmpfsInodes = 16_384;
/** Memory of /dev; more fails inside with ENOSPC. Bytes. */
export const devicesBytes = 64 * 1024 * 1024;
/** Terminals open in a sandbox; one more fails inside with ENOSPC. The kernel has 4096 for the whole host (kernel.pty.max). */
export const maxTerminals = 256;
/** POSIX message queues of one user in a sandbox; more fail inside with EMFILE. Bytes; the kernel's own default. */
export const messageQueueBytes = 819_200;
/** /.drover/run of a sandbox with a disk limit; more fails inside with ENOSPC. Bytes: init's two logs of 8 MiB, and as much again. */
export const runDiskBytes = 32 * 1024 * 1024;
/** Open files of a process in a sandbox. */
export const maxOpenFiles = 1_048_576;

/** Bytes of all files that one layer may unpack to. Above: the pull fails with too-large. */
export const maxLayerBytes = 16 * 1024 ** 3;
/** Entries that one layer may have. Above: the pull fails with too-large. */
export const maxLayerEntries = 1_000_000;
/** Times that a layer may grow when decompressed, once past `expansionFreeBytes`. Above: unsafe-archive. DEFLATE's own limit is 1032. */
export const maxLayerExpansion = 250;
/** Bytes that any layer may unpack to, however small it is: a disk image or a database of zeros is common, and does no harm. */
export const expansionFreeBytes = 1024 ** 3;
/** Symbolic links followed for one path inside a layer, as path_resolution(7). Above: unsafe-archive. */
export const maxLinksFollowed = 40;
/** Bytes of a manifest or index (distribution-spec: registries take at least 4 MiB). Above: too-large. */
export const maxManifestBytes = 4 * 1024 ** 2;
/** Bytes of an image config. Above: too-large. */
export const maxImageConfigBytes = 8 * 1024 ** 2;
/** Layers of an image: overlayfs takes 500 lower directories. Above: too-large. */
export const maxLayers = 500;
/** Bytes of a compressed layer. Above: too-large. */
export const maxBlobBytes = 16 * 1024 ** 3;
/** Bytes of a token server's response, or of an error, that are read; the rest is ignored. */
export const maxRegistryAnswerBytes = 256 * 1024;
/** How long a credential helper may take to answer; then it is killed and the pull fails with registry-denied. Milliseconds. */
export const credentialHelperMs = 10_000;
/** Bytes of a credential helper's answer. Above: registry-denied. */
export const maxCredentialBytes = 64 * 1024;
/** Redirects followed for one request. Above: registry-unreachable. */
export const maxRedirects = 5;
/** Tries of one registry request or one blob that make no progress. After: registry-unreachable. */
export const maxRegistryTries = 5;
/** Longest wait of a registry's Retry-After; more is cut to it. Milliseconds. */
export const maxRetryAfterMs = 30_000;
/** Silence of a registry, while connecting, before headers and in a body. Milliseconds. After: the request is tried again. */
export const registryConnectMs = 10_000;
export const registrySilenceMs = 30_000;
/** A pull, from its start. Milliseconds. After: timed-out; the next try resumes the downloads. */
export const pullTimeoutMs = 600_000;
/** Concurrent downloads of blobs, over all pulls. More wait. */
export const maxDownloads = 4;
/** Layers unpacked concurrently, each in a thread. More wait. */
export const maxUnpacks = 2;
/** Unfinished downloads that were not resumed for so long are removed at the agent's start. Milliseconds. */
export const partialKeptMs = 24 * 3_600_000;
/** Least time between two changes of a sandbox's message by the progress of its image. Milliseconds. */
export const pullMessageMs = 1_000;
/** Least time between two progress reports of one pull. Milliseconds; those between are dropped. */
export const progressEveryMs = 100;
/** How stale an image's last use may be on disk. Milliseconds. */
export const lastUsedResolutionMs = 60_000;
/** Entries of an archive of images (docker save, oci-archive). Above: unsafe-archive. */
export const maxArchiveEntries = 10_000;
/** Bytes of one file, and files, that are copied from the host's /etc for the image `host`. Larger ones are left out. */
export const maxHostFileBytes = 8 * 1024 ** 2;
export const maxHostFiles = 20_000;

// Host link (spec 1): packages/agent/src/link

/** Reconnect backoff with full jitter (L-12). Milliseconds. */
export const reconnectBaseMs = 500;
export const reconnectCapMs = 30_000;
/** A stream that held for this long resets the backoff (L-12). Milliseconds. */
export const healthyStreamMs = 60_000;
/** The longest reconnect delay that the agent accepts from the control plane. Milliseconds. */
export const maxServerDelayMs = 300_000;
/** From dialling to the Welcome; then the attempt counts as failed. Milliseconds. */
export const welcomeTimeoutMs = 60_000;
/** grpc-js's own backoff, which must not be shorter than the link's. Milliseconds. */
export const channelBackoffMs = 120_000;
/** HTTP/2 pings while a stream is open, and how long a reply may take: they detect a dead control plane. Milliseconds. */
export const keepaliveMs = 20_000;
export const keepaliveTimeoutMs = 15_000;
/** HTTP/2 receive window of a link connection: the bytes of a tunnel under way before the sandbox reads them. Bytes. */
export const linkWindowBytes = 1024 * 1024;
/** Results retained for repeated commands (L-19), the oldest dropped first. */
export const retainedResults = 1_000;
/** Open tunnels; one more is refused with queue-full. */
export const tunnelsAtOnce = 1_024;
/** How long the last bytes of one end of a tunnel may wait for the other end to read them; then it is cut off. Milliseconds. */
export const tunnelLingerMs = 30_000;
/** From the command to the dialled port in the sandbox. Milliseconds. */
export const tunnelDialMs = 15_000;
/** Frames that may wait for a slow control plane before observations are held back. */
export const outgoingFrames = 64;
/** How long a sandbox's start waits for its certificate. Milliseconds; then unavailable. */
export const signingTimeoutMs = 60_000;
/** Between two tries to renew the host's certificate. Milliseconds. */
export const renewalRetryMs = 60_000;
/** From the first byte to the answer of a join. Milliseconds. */
export const joinTimeoutMs = 30_000;

// Network (spec 5.4): packages/agent/src/network

/** Sandboxes with a network on one host; one more is refused with no-room. The rules name every one of them beforehand. */
export const networkSlots = 4096;
/** Network namespaces ready for the next creates; without one a create takes some 10 ms more. */
export const warmNetworks = 16;
/** Pause between a create that used a ready namespace and making the next, which would take CPU from the create. Milliseconds. */
export const warmNetworkDelayMs = 500;
/** The same when none is left. Milliseconds. */
export const emptyNetworkDelayMs = 50;
/** Network namespaces that are made concurrently; more wait. */
export const networkCreatesAtOnce = 4;
/** How long one call of ip, nft or nsenter may take; then it is killed and the operation fails with timed-out. Milliseconds. */
export const networkCommandMs = 15_000;
/** Bytes that one call of ip, nft or nsenter may print; then it is killed. */
export const networkCommandOutputBytes = 8 * 1024 * 1024;
/** Operations waiting on one sandbox's network; one more is refused with queue-full. */
export const networkOperationsPerSandbox = 64;
/** Time between health probes of the gateway. Milliseconds; three failures in a row replace the gateway. */
export const gatewayProbeMs = 2000;
/** How long the gateway of an earlier agent may take to respond; after that it is replaced, with its connections. Milliseconds. */
export const gatewayAdoptMs = 5000;
/** How long an apply waits for a gateway that is starting. Milliseconds; then unavailable. */
export const gatewayStartMs = 10_000;
/** The wait between two tries of one apply, when the gateway died in between. Milliseconds. */
export const gatewayRetryMs = 50;
/** The time between SIGTERM and SIGKILL for the gateway: its daemons have 8 s. Milliseconds. */
export const gatewayStopGraceMs = 10_000;
/** Default of the sandboxes that a host accepts. */
export const defaultSlots = 200;
/** Where the egress proxy listens on the gateway's address. */
export const proxyPort = 3128;
/** The registration port (I-13), on the gateway's address: the host's end of the way to the control plane's sandbox-facing listener. */
export const controlPort = 9181;
/** Connections of one sandbox to the registration port; one more is closed immediately. */
export const controlConnectionsPerSandbox = 4;
/** How long after its end a connection still counts: bounds the cost of a sandbox that dials without pause. Milliseconds. */
export const controlConnectionRestMs = 1_000;
/** A connection that is silent for so long is probed, and closed when the sandbox does not respond. Milliseconds. */
export const controlKeepaliveMs = 30_000;
/** An idle unpacking thread ends after so long. Milliseconds. */
export const idleThreadMs = 5000;
/** How often unused images are collected. Milliseconds. */
export const imageUpkeepMs = 3_600_000;
/** An image that no sandbox holds is removed when unused for this long. Milliseconds. */
export const imageKeptMs = 14 * 24 * 3_600_000;
/** The same on a disk that is fuller than `fullDiskShare`. Milliseconds. */
export const imageKeptFullDiskMs = 3_600_000;
/** The same when there is no space for an image that is being pulled. Milliseconds; more than `lastUsedResolutionMs`, so that none is in use. */
export const imageKeptNoSpaceMs = 120_000;
/** From this share of use on, a disk counts as nearly full. */
export const fullDiskShare = 0.9;
/** The tmpfs of a sandbox's secrets; the control plane takes 64 of 256 KiB together. Bytes; a page for each file's end. */
export const secretsTmpfsSize = 1024 * 1024;
/** Files on that tmpfs; more fail inside with ENOSPC. */
export const secretsInodes = 1024;
/** Copies out of ended sandboxes under way on a host, each in a program of about 50 MB; one more is refused with queue-full. */
export const maxEndedCopies = 4;
/** A file system with less free than both counts as full: this share of it, and so many bytes. */
export const fullFreeShare = 0.01;
export const fullFreeBytes = 256 * 1024 ** 2;
/** How often each sandbox's out-of-memory kills, disk and processes are checked. Milliseconds. */
export const resourceCheckMs = 2_000;
/** Kills found by one check whose processes are named; further ones are counted. */
export const maxOomVictims = 16;
/** Records of the kernel's log that one check reads for the names of killed processes; the next check continues. */
export const maxKernelLogRecords = 20_000;
/** Kills in the kernel's log that are retained for the checks of other sandboxes; the oldest are dropped. */
export const maxKeptOomKills = 1_024;

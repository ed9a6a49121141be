package cleave

import (
	"runtime"
	"time"

	"cleave/go/internal/capi"
)

// Encryption selects whether a listener encrypts connections. Peers need the cache's secret in any case.
type Encryption uint32

// Encryption modes.
const (
	// EncryptRemote encrypts unless the listening address is a loopback address.
	EncryptRemote Encryption = 0
	// EncryptAlways also encrypts over loopback.
	EncryptAlways Encryption = capi.ListenEncrypt
	// EncryptNever is for trusted networks. Both sides still prove that they know the secret.
	EncryptNever Encryption = capi.ListenPlaintext
)

// ListenConfig configures a listener. The zero value means default in every field.
type ListenConfig struct {
	// Advertise ("host:port") is the address at which peers reach the cache. Default: the listening address, or the
	// addresses of all interfaces if that is 0.0.0.0 or [::].
	Advertise string
	// Encryption selects whether connections are encrypted.
	Encryption Encryption
}

// Listen lets caches on other machines import from this one. It listens for TCP at address ("host:port", IPv6 in
// brackets; port 0 takes a free one) until the cache is closed, and returns the port. Call it before tickets and
// addresses are made, because they contain the listeners that exist at that time. Call it once for each address.
//
// Errors: [ErrInvalidArgument] (address, or a cache without a secret), [ErrPermission] (a port below 1024), [ErrIO]
// (the port is taken).
func (c *Cache) Listen(address string, config ListenConfig) (port int, err error) {
	defer runtime.KeepAlive(c)
	p, e := capi.CacheListen(c.name, address, config.Advertise, uint32(config.Encryption))
	return int(p), c.wrap(e)
}

// Address returns some hundred bytes, signed with the cache's secret, that tell other caches how to reach this one and
// what it holds. Pass them to [Cache.Pair] of a peer. [Cache.Listen] changes them.
func (c *Cache) Address() ([]byte, error) {
	defer runtime.KeepAlive(c)
	address, e := capi.CacheAddress(c.name)
	return address, c.wrap(e)
}

// Transport is a way to move KV from one cache to another.
type Transport uint32

// Transports between caches.
const (
	// TransportAny takes the best transport that works. It never takes NIXL, which has to be required.
	TransportAny Transport = iota
	// TransportProcess copies once between two caches in this process.
	TransportProcess
	// TransportSharedMemory maps the pool of an exporter on this machine once, then copies once per transfer.
	TransportSharedMemory
	// TransportTCP sends from pool to pool over several sockets.
	TransportTCP
	// TransportNIXL is NVIDIA's NIXL, loaded at run time. Both sides need it.
	TransportNIXL
	// TransportCUDA maps the pool of an exporter on this machine, in the memory of a CUDA device, once. Each transfer
	// is one copy on the device, between devices, or to this process's memory.
	TransportCUDA
)

// PairReason is the reason why two caches cannot exchange KV.
type PairReason uint32

// Reasons for refusing a pair.
const (
	// PairNone: the caches can exchange KV.
	PairNone PairReason = iota
	// PairWeights: the peer has other weights or another config.
	PairWeights
	// PairTokenizer: the peer has another tokenizer.
	PairTokenizer
	// PairDType: the peer's KV has another dtype, and this cache does not convert.
	PairDType
	// PairBlockSize: the peer's blocks have another size, and this cache does not convert.
	PairBlockSize
	// PairLayout: the peer has another layout, which cannot be converted.
	PairLayout
	// PairVersion: the two have no common version of formats or protocols.
	PairVersion
	// PairSecret: the two have different secrets.
	PairSecret
	// PairTransport: one of the sides lacks the required transport, or the two have none in common.
	PairTransport
	// PairUnreachable: nobody answers at the address, or the peer is gone.
	PairUnreachable
	// PairSelfTest: test blocks did not arrive as they were sent.
	PairSelfTest
	// PairAddress: the address is damaged, or is not an address.
	PairAddress
	// PairResources: one side has no free block for the self-test, or is being closed.
	PairResources
)

// PairReport is the result of [Cache.Pair].
type PairReport struct {
	// Transport is the transport that imports from the peer use from now on.
	Transport Transport
	// Reason is the reason for a refusal.
	Reason PairReason
	// BytesPerSecond is the rate from the peer to this cache, measured by the self-test.
	BytesPerSecond uint64
	// RTT is the round-trip time of a request with a minimal reply.
	RTT time.Duration
	// Detail describes the transport, or the expected and the actual value after a refusal.
	Detail string
}

// Pair checks, before there is any traffic, whether this cache can import from the peer at address ([Cache.Address] of
// the peer). It compares secret, weights, tokenizer and layout, and looks for a transport that reaches the peer: the
// required one, or any with [TransportAny]. It then transfers blocks with a known pattern, compares them and measures
// the rate. From now on imports from that peer use the transport that was found, and no other. Pair also does the work
// that is needed once per pair of caches. It is optional: an import without it finds a transport itself.
//
// Pair waits at most [CacheConfig.PeerTimeout] for each of the peer's replies. The report is filled even if the pair is
// refused. Errors: [ErrIncompatible], [ErrPermission] (other secret), [ErrUnsupported] (transport missing), [ErrPeer]
// (peer not reached), [ErrCorrupt] (address, self-test), [ErrOutOfMemory], [ErrShutdown].
func (c *Cache) Pair(address []byte, required Transport) (PairReport, error) {
	defer runtime.KeepAlive(c)
	r, e := capi.CachePair(c.name, address, uint32(required))
	return PairReport{
		Transport:      Transport(r.Transport),
		Reason:         PairReason(r.Reason),
		BytesPerSecond: r.BytesPerSecond,
		RTT:            time.Duration(r.RTTNanoseconds),
		Detail:         r.Detail,
	}, c.wrap(e)
}

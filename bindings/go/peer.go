package cleave

import (
	"runtime"
	"time"

	"cleave/go/internal/capi"
)

// Encryption is whether a listener encrypts. Peers need the cache's secret in any case.
type Encryption uint32

// Encryption of connections.
const (
	// EncryptRemote encrypts unless the address that is listened at is a loopback one.
	EncryptRemote Encryption = 0
	// EncryptAlways encrypts over loopback too.
	EncryptAlways Encryption = capi.ListenEncrypt
	// EncryptNever is for networks that are trusted. Both sides still prove that they know the secret.
	EncryptNever Encryption = capi.ListenPlaintext
)

// ListenConfig is how a cache listens. The zero value means default in every field.
type ListenConfig struct {
	// Advertise ("host:port") is how peers reach the cache. Default: the address that it listens at, or those of all
	// interfaces if that is 0.0.0.0 or [::].
	Advertise string
	// Encryption is whether connections are encrypted.
	Encryption Encryption
}

// Listen lets caches on other machines import from this one: it listens for TCP at address ("host:port", IPv6 in
// brackets; port 0 takes a free one) until the cache is closed, and returns the port. Listen before tickets and
// addresses are made: they name what there is then. Several addresses are several calls.
//
// Errors: [ErrInvalidArgument] (address, or a cache without a secret), [ErrPermission] (a port below 1024), [ErrIO]
// (the port is taken).
func (c *Cache) Listen(address string, config ListenConfig) (port int, err error) {
	defer runtime.KeepAlive(c)
	p, e := capi.CacheListen(c.name, address, config.Advertise, uint32(config.Encryption))
	return int(p), c.wrap(e)
}

// Address returns where other caches find this one and what it holds, signed with its secret: some hundred bytes for
// [Cache.Pair] of a peer. It changes with [Cache.Listen].
func (c *Cache) Address() ([]byte, error) {
	defer runtime.KeepAlive(c)
	address, e := capi.CacheAddress(c.name)
	return address, c.wrap(e)
}

// Transport is how KV gets from one cache to another.
type Transport uint32

// Transports.
const (
	// TransportAny is the best that works, the first of these that does; NIXL only where it is required.
	TransportAny Transport = iota
	// TransportProcess: both caches are in this process. One copy.
	TransportProcess
	// TransportSharedMemory: both are on this machine. The exporter's pool is mapped once, then one copy.
	TransportSharedMemory
	// TransportTCP: several sockets, from pool to pool.
	TransportTCP
	// TransportNIXL is NVIDIA's NIXL, loaded at run time. Both sides need it.
	TransportNIXL
	// TransportCUDA: both are on this machine, the exporter's pool is in the memory of a CUDA device. It is mapped once, then
	// one copy on the device, between devices, or to this process's memory.
	TransportCUDA
)

// PairReason is why two caches cannot exchange KV.
type PairReason uint32

// Reasons of a refused pair.
const (
	// PairNone: they can.
	PairNone PairReason = iota
	// PairWeights: other weights or another config.
	PairWeights
	// PairTokenizer: another tokenizer.
	PairTokenizer
	// PairDType: KV of another dtype, and this cache does not convert.
	PairDType
	// PairBlockSize: blocks of another size, and this cache does not convert.
	PairBlockSize
	// PairLayout: another layout that cannot be converted.
	PairLayout
	// PairVersion: formats or protocols of no common version.
	PairVersion
	// PairSecret: the two do not have the same secret.
	PairSecret
	// PairTransport: the required transport, or any, is missing on one of the sides.
	PairTransport
	// PairUnreachable: nobody answers at the address, or the peer is gone.
	PairUnreachable
	// PairSelfTest: blocks did not come as they were sent.
	PairSelfTest
	// PairAddress: the address is damaged, or something else than an address.
	PairAddress
	// PairResources: a side has no free block for the self-test, or is being closed.
	PairResources
)

// PairReport is how two caches would exchange KV.
type PairReport struct {
	// Transport is what imports from that cache use from now on.
	Transport Transport
	// Reason is why they cannot, if so.
	Reason PairReason
	// BytesPerSecond is what the self-test measured, from the peer to here.
	BytesPerSecond uint64
	// RTT is the time of a question without an answer worth the name.
	RTT time.Duration
	// Detail is the transport and where, or what was expected and what was found.
	Detail string
}

// Pair checks, before there is any traffic, whether this cache can import from the one at address ([Cache.Address] of
// the peer): secret, weights, tokenizer, layout, and a transport that reaches it, which has to be required if that is
// not [TransportAny]. It moves blocks with a known pattern, compares them, and measures. Imports from that cache use the
// transport that was found from now on, and no other. What costs once per pair is paid here. Not needed before an
// import, which finds its own way.
//
// It waits for the peer's answers, at most [CacheConfig.PeerTimeout] each. The report is filled also if the pair is
// refused. Errors: [ErrIncompatible], [ErrPermission] (other secret), [ErrUnsupported] (transport missing), [ErrPeer]
// (nobody there), [ErrCorrupt] (address, self-test), [ErrOutOfMemory], [ErrShutdown].
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

package cleave

import (
	"fmt"
	"testing"
)

func TestPairing(t *testing.T) {
	p := newPair(t)
	port := must[int](t)(p.from.Listen("127.0.0.1:0", ListenConfig{Encryption: EncryptAlways}))
	if port <= 0 || port > 65535 {
		t.Fatal(port)
	}
	_, err := p.from.Listen(fmt.Sprintf("127.0.0.1:%d", port), ListenConfig{})
	expect(t, err, ErrIO)
	_, err = p.from.Listen("nowhere", ListenConfig{})
	expect(t, err, ErrInvalidArgument)
	_, err = newCache(t, CacheConfig{}).Listen("127.0.0.1:0", ListenConfig{})
	expect(t, err, ErrInvalidArgument) // the cache has no secret

	address := must[[]byte](t)(p.from.Address())
	for _, transport := range []Transport{TransportAny, TransportProcess, TransportSharedMemory, TransportTCP} {
		report, err := p.to.Pair(address, transport)
		if err != nil {
			t.Errorf("%d: %v", transport, err)
			continue
		}
		if report.Reason != PairNone || report.BytesPerSecond == 0 || report.RTT <= 0 || report.Detail == "" ||
			transport != TransportAny && report.Transport != transport || report.Transport == TransportAny {
			t.Errorf("%d: %+v", transport, report)
		}
		kv, _ := p.prefilled(t)
		p.goesOn(t, p.decode, must[*KV](t)(p.to.Import(must[[]byte](t)(kv.Ticket()))))
	}
}

func TestPairsThatAreRefused(t *testing.T) {
	from := newCache(t, CacheConfig{Secret: secret})
	address := must[[]byte](t)(from.Address())
	for what, pairing := range map[string]struct {
		importer  CacheConfig
		address   []byte
		transport Transport
		code      Code
		reason    PairReason
	}{
		"secret":    {CacheConfig{Secret: [32]byte{9}}, address, TransportAny, ErrPermission, PairSecret},
		"dtype":     {CacheConfig{Secret: secret, DType: DTypeF32, NoConvert: true}, address, TransportAny, ErrIncompatible, PairDType},
		"blocks":    {CacheConfig{Secret: secret, BlockTokens: 32, NoConvert: true}, address, TransportAny, ErrIncompatible, PairBlockSize},
		"transport": {CacheConfig{Secret: secret}, address, TransportTCP, ErrUnsupported, PairTransport},
		"address":   {CacheConfig{Secret: secret}, address[:len(address)-1], TransportAny, ErrCorrupt, PairAddress},
	} {
		report, err := newCache(t, pairing.importer).Pair(pairing.address, pairing.transport)
		expect(t, err, pairing.code)
		if report.Reason != pairing.reason || report.Detail == "" {
			t.Errorf("%s: %+v", what, report)
		}
	}
	from.Close()
	report, err := newCache(t, CacheConfig{Secret: secret}).Pair(address, TransportAny)
	expect(t, err, ErrPeer)
	if report.Reason != PairUnreachable {
		t.Errorf("%+v", report)
	}
}

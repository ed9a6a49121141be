package openengine

import (
	"context"
	"encoding/binary"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"cleave/examples/go-server/internal/kvevents"
	pb "cleave/examples/go-server/internal/pb/openengine"
	"cleave/examples/go-server/internal/rpc"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// GetKvEventSources tells where what is in the prefix cache is published on ZeroMQ. SubscribeKvEvents has it too, at the
// address of this service.
func (s *Service) GetKvEventSources(_ context.Context, q *pb.GetKvEventSourcesRequest) (*pb.GetKvEventSourcesResponse, error) {
	r := &pb.GetKvEventSourcesResponse{}
	if s.events == nil || !hasRankZero(q.GetDataParallelRanks()) {
		return r, nil
	}
	host, port, err := net.SplitHostPort(strings.TrimPrefix(s.events.Address(), "tcp://"))
	if err != nil {
		return nil, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	r.Sources = append(r.Sources, &pb.KvEventSource{
		Transport:        "zmq",
		EndpointAddr:     &pb.KvEndpoint{Host: host, Port: uint32(number), Protocol: "tcp"},
		Topic:            kvevents.Topic,
		ReplayEndpoint:   s.events.Replay(),
		DataParallelRank: proto.Uint32(0),
		Encoding:         "msgpack",
		SchemaVersion:    proto.Uint32(1),
		BufferSteps:      proto.Uint32(kvevents.Kept),
	})
	return r, nil
}

func hasRankZero(ranks []uint32) bool { return len(ranks) == 0 || slices.Contains(ranks, 0) }

// SubscribeKvEvents sends what enters and leaves the prefix cache until the client leaves. After a gap it tells that all
// blocks are gone, and sends those that are there.
func (s *Service) SubscribeKvEvents(q *pb.SubscribeKvEventsRequest, stream grpc.ServerStreamingServer[pb.SubscribeKvEventsResponse]) error {
	if s.events == nil {
		return status.Error(codes.FailedPrecondition, "KV events are not recorded: the server needs --kv-events")
	}
	if !hasRankZero(q.GetDataParallelRanks()) {
		return rpc.Invalid("data_parallel_ranks", "this worker is rank 0 and has no other")
	}
	if q.GetStartSequenceNumber() > 0 {
		return rpc.Invalid("start_sequence_number", "must be 0: ask for a snapshot")
	}
	number, first := uint64(0), true
	for batch, err := range s.host.Cache.Events(stream.Context()) {
		if err != nil {
			return rpc.Status(stream.Context(), err)
		}
		skip := first && !q.GetIncludeSnapshot()
		first = false
		if skip {
			continue
		}
		number++
		message := &pb.KvEventBatch{SequenceNumber: number, TimestampUnixNanos: uint64(time.Now().UnixNano())}
		for _, event := range kvevents.Convert(batch, s.host.Salts.Text) {
			message.Events = append(message.Events, convert(event))
		}
		if err := stream.Send(&pb.SubscribeKvEventsResponse{Event: &pb.SubscribeKvEventsResponse_Batch{Batch: message}}); err != nil {
			return err
		}
	}
	return nil
}

func convert(event any) *pb.KvEvent {
	switch e := event.(type) {
	case *kvevents.Stored:
		stored := &pb.BlockStored{BlockHashes: hashes(e.BlockHashes...), BlockSize: uint32(e.BlockSize),
			Medium: pb.StorageMedium_STORAGE_MEDIUM_GPU, GroupIdx: uint32(e.GroupIdx)}
		if e.ParentBlockHash != nil {
			stored.ParentBlockHash = hashes(*e.ParentBlockHash)[0]
		}
		for _, token := range e.TokenIDs {
			stored.TokenIds = append(stored.TokenIds, uint32(token))
		}
		if e.CacheSalt != "" {
			stored.ExtraKeys = []*pb.OpaqueKeyTuple{{Values: []string{e.CacheSalt}}}
		}
		return &pb.KvEvent{Event: &pb.KvEvent_BlockStored{BlockStored: stored}}
	case *kvevents.Removed:
		return &pb.KvEvent{Event: &pb.KvEvent_BlockRemoved{BlockRemoved: &pb.BlockRemoved{BlockHashes: hashes(e.BlockHashes...),
			Medium: pb.StorageMedium_STORAGE_MEDIUM_GPU, GroupIdx: uint32(e.GroupIdx)}}}
	}
	return &pb.KvEvent{Event: &pb.KvEvent_AllBlocksCleared{AllBlocksCleared: &pb.AllBlocksCleared{}}}
}

func hashes(numbers ...uint64) (all []*pb.KvBlockHash) {
	for _, number := range numbers {
		all = append(all, &pb.KvBlockHash{Value: binary.BigEndian.AppendUint64(nil, number), Encoding: "bytes"})
	}
	return all
}

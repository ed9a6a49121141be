package rpc

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"math"

	"cleave/examples/go-server/internal/core"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
)

// MostCandidates is the largest number of alternatives that a token can be reported with: the library's limit.
const MostCandidates = 128

const (
	rankCandidates  = 20 // alternatives that the engine is asked for at least, so that ranks up to here are exact
	mostStopStrings = 128
	mostStopBytes   = 1024
)

// CheckModel refuses a request for another model.
func CheckModel(host *core.Host, name string) error {
	if name == "" || name == host.Config.Name {
		return nil
	}
	return status.Errorf(codes.NotFound, "model: there is no model %q here", name)
}

// CheckRank refuses a request for another data-parallel rank than 0.
func CheckRank(ctx context.Context, header string) error {
	for _, rank := range metadata.ValueFromIncomingContext(ctx, header) {
		if rank != "0" {
			return Invalid(header, "this worker is rank 0 and has no other")
		}
	}
	return nil
}

// CheckFields refuses a request with a field, in any of its messages, that the protocol had not when this server's code was
// generated.
func CheckFields(request proto.Message) error {
	return checkFields("the request", request.ProtoReflect())
}

// checkFields checks one message, which errors call by `name`.
func checkFields(name string, m protoreflect.Message) error {
	if unknown := m.GetUnknown(); len(unknown) > 0 {
		number, _ := binary.Uvarint(unknown)
		return Invalid(name, "field number %d is unknown to this server", number>>3)
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if field.Message() == nil || field.IsMap() || !m.Has(field) {
			continue
		}
		value := m.Get(field)
		if !field.IsList() {
			if err := checkFields(string(field.Name()), value.Message()); err != nil {
				return err
			}
			continue
		}
		for j := range value.List().Len() {
			if err := checkFields(string(field.Name()), value.List().Get(j).Message()); err != nil {
				return err
			}
		}
	}
	return nil
}

// Tokens converts token ids and checks them.
func Tokens(host *core.Host, field string, ids []uint32) ([]int32, error) {
	tokens := make([]int32, len(ids))
	for i, id := range ids {
		if id >= uint32(host.About.VocabSize) {
			return nil, Invalid(field, "the model has no token %d", id)
		}
		tokens[i] = int32(id)
	}
	return tokens, nil
}

// Tokenize returns the tokens of a text. One that cannot fit into the context is refused before it is tokenised.
func Tokenize(host *core.Host, field, text string) ([]int32, error) {
	if len(text) > host.MaxPromptBytes {
		return nil, Invalid(field, "%d bytes, and at most %d fit into the context", len(text), host.MaxPromptBytes)
	}
	tokens, err := host.Model.Tokenize(text)
	if err != nil {
		return nil, Invalid(field, "%v", err)
	}
	return tokens, nil
}

// CheckPrompt refuses a prompt that is empty or leaves no room for a token.
func CheckPrompt(host *core.Host, tokens []int32) error {
	if len(tokens) == 0 {
		return Invalid("prompt", "it is empty")
	}
	if limit := host.About.MaxContextTokens; len(tokens) >= limit {
		return Invalid("prompt", "%d tokens, and the context has room for %d with one to follow", len(tokens), limit-1)
	}
	return nil
}

// CheckStopStrings refuses stop strings that are empty, too long or too many.
func CheckStopStrings(field string, stops []string) error {
	if len(stops) > mostStopStrings {
		return Invalid(field, "there are %d, and at most %d are taken", len(stops), mostStopStrings)
	}
	for _, stop := range stops {
		if stop == "" || len(stop) > mostStopBytes {
			return Invalid(field, "each must have 1 to %d bytes", mostStopBytes)
		}
	}
	return nil
}

// Seed converts a seed. The library takes 0 for a random one.
func Seed(seed uint64) uint64 {
	if seed == 0 {
		return 1 << 63
	}
	return seed
}

// Priority converts a priority of 32 bits with a sign, higher first, to one without.
func Priority(priority int64) int { return int(min(max(priority-math.MinInt32, 0), math.MaxUint32)) }

// Alternatives returns how many alternatives to ask the engine for, if `wanted` are to be reported with each token.
func Alternatives(host *core.Host, wanted int) int {
	return max(wanted, min(rankCandidates, host.About.VocabSize))
}

// Rank returns the place of a token among the likeliest ones. If it is not among the alternatives that the engine
// reported, that is the first one beyond them.
func Rank(p *core.Piece) uint32 {
	for i, other := range p.Top {
		if other.Token == p.Token {
			return uint32(i) + 1
		}
	}
	return uint32(len(p.Top)) + 1
}

const (
	ticketKey  = "cleave_ticket"
	addressKey = "cleave_address"
)

// ParseTicket reads a ticket from a struct; without one in it the ticket is empty.
func ParseTicket(field string, params *structpb.Struct) (t core.Ticket, err error) {
	for _, part := range []struct {
		key  string
		into *[]byte
	}{{ticketKey, &t.Ticket}, {addressKey, &t.Address}} {
		value := params.GetFields()[part.key]
		switch value.GetKind().(type) {
		case nil, *structpb.Value_NullValue:
			continue
		case *structpb.Value_StringValue:
		default:
			return t, Invalid(field, "%s is not a string", part.key)
		}
		if *part.into, err = base64.StdEncoding.DecodeString(value.GetStringValue()); err != nil {
			return t, Invalid(field, "%s is not base64", part.key)
		}
	}
	return t, nil
}

// TicketStruct writes a ticket into a struct.
func TicketStruct(t core.Ticket) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		ticketKey:  structpb.NewStringValue(base64.StdEncoding.EncodeToString(t.Ticket)),
		addressKey: structpb.NewStringValue(base64.StdEncoding.EncodeToString(t.Address)),
	}}
}

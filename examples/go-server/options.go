package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	cleave "cleave/go"
)

// options holds the command line's options: see ../README.md.
type options struct {
	role, listen, model, modelName, front, advertise, secretFile, kvListen, page, workersListen, grpc, kvEvents, kvEventsReplay string
	kvMiB, maxSequences, maxBatchTokens, threads, maxConnections, forgetAfter, kvLease, drain                                   uint
	device                                                                                                                      int
	isolate, openengine                                                                                                         bool
}

func (o *options) worker() bool { return o.role == "prefill" || o.role == "decode" }

// parseOptions parses the command line. If help was asked for, it prints the help and returns flag.ErrHelp.
func parseOptions(args []string) (*options, error) {
	o := &options{}
	flags := flag.NewFlagSet("go-server", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.role, "role", "mixed", "mixed, prefill, decode or front")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:8000", "`HOST:PORT` to serve at; port 0 takes a free one")
	flags.StringVar(&o.model, "model", "", "`DIR` of a Hugging Face model")
	flags.StringVar(&o.modelName, "model-name", "", "`NAME` of the model for clients (default: the last part of DIR)")
	flags.StringVar(&o.front, "front", "", "`URL` of the front that a worker joins (default: it answers everybody, with vLLM's kv_transfer_params)")
	flags.StringVar(&o.advertise, "advertise", "", "`URL` of this worker for its front (default: where it listens)")
	flags.StringVar(&o.workersListen, "workers-listen", "127.0.0.1:8001", "`HOST:PORT` where a front's workers report")
	flags.UintVar(&o.forgetAfter, "forget-after", 60, "`SECONDS` until a front forgets a dead worker")
	flags.UintVar(&o.maxConnections, "max-connections", 2048, "`N` connections at once")
	flags.StringVar(&o.secretFile, "secret-file", "", "`PATH` of 32 bytes, the same for a front and its workers")
	flags.StringVar(&o.kvListen, "kv-listen", "", "`HOST:PORT` where other machines fetch KV from a prefill worker")
	flags.UintVar(&o.kvLease, "kv-lease", 10, "`SECONDS` for which a prefill worker keeps KV that nobody fetches")
	flags.UintVar(&o.drain, "drain", 10, "`SECONDS` for running requests at shutdown")
	flags.StringVar(&o.grpc, "grpc", "", "`HOST:PORT` or unix:PATH for vLLM's gRPC protocol, which Dynamo's sidecar speaks")
	flags.StringVar(&o.kvEvents, "kv-events", "", "`HOST:PORT` where to publish on ZeroMQ what is in the prefix cache")
	flags.StringVar(&o.kvEventsReplay, "kv-events-replay", "", "`HOST:PORT` where to publish it once more")
	flags.BoolVar(&o.openengine, "openengine", false, "serve the OpenEngine protocol beside vLLM's (experimental)")
	flags.BoolVar(&o.isolate, "isolate", false, "run the engine in a child process, so that a crash does not break gRPC connections")
	flags.IntVar(&o.device, "device", cleave.DeviceCPU, "`N`, the number of a GPU (default: the CPU)")
	flags.UintVar(&o.kvMiB, "kv-mib", 1024, "`MIB` of memory for KV")
	flags.UintVar(&o.maxSequences, "max-sequences", 0, "`N` sequences that run at once (default: the library's)")
	flags.UintVar(&o.maxBatchTokens, "max-batch-tokens", 0, "`N` tokens of a step at most (default: the library's)")
	flags.UintVar(&o.threads, "threads", 0, "`N` threads that compute (default: the library's)")
	flags.StringVar(&o.page, "page", "", "`FILE` for GET /")
	if err := flags.Parse(args); err != nil {
		if err == flag.ErrHelp {
			flags.SetOutput(os.Stderr)
			flags.PrintDefaults()
		}
		return nil, err
	}
	o.front = strings.TrimSuffix(o.front, "/")
	o.advertise = strings.TrimSuffix(o.advertise, "/")
	if o.modelName == "" {
		o.modelName = filepath.Base(o.model)
	}
	switch {
	case flags.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case !slices.Contains([]string{"mixed", "prefill", "decode", "front"}, o.role):
		return nil, fmt.Errorf("--role %s: must be mixed, prefill, decode or front", o.role)
	case o.role != "front" && o.model == "":
		return nil, errors.New("--model is missing")
	case o.worker() && o.front != "" && !strings.HasPrefix(o.front, "http://"):
		return nil, fmt.Errorf("--front %s: must be http://HOST:PORT, where the front has --workers-listen", o.front)
	case o.role != "mixed" && o.secretFile == "":
		return nil, errors.New("a worker and a front need --secret-file")
	case o.role == "front" && o.grpc != "":
		return nil, errors.New("--grpc: a front has no engine to serve")
	case o.kvEventsReplay != "" && o.kvEvents == "", o.kvEvents != "" && o.role == "front":
		return nil, errors.New("--kv-events needs an engine, and --kv-events-replay needs --kv-events")
	case (o.isolate || o.openengine) && o.grpc == "":
		return nil, errors.New("--isolate and --openengine need --grpc")
	case o.kvLease == 0 || max(o.kvLease, o.drain) > 1000000:
		return nil, errors.New("--kv-lease or --drain is out of range")
	case o.maxConnections == 0 || max(o.maxConnections, o.forgetAfter) > 1000000:
		return nil, errors.New("--max-connections or --forget-after is out of range")
	case o.device < cleave.DeviceCPU:
		return nil, fmt.Errorf("--device %d: GPUs are numbered from 0 on", o.device)
	case max(o.kvMiB, o.maxSequences, o.maxBatchTokens, o.threads) > 1<<31 || o.kvMiB == 0:
		return nil, errors.New("--kv-mib, --max-sequences, --max-batch-tokens or --threads is out of range")
	}
	return o, nil
}

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// options are those of ../README.md.
type options struct {
	role, listen, model, modelName, front, advertise, secretFile, kvListen, page string
	kvMiB, maxSequences, maxBatchTokens, threads                                 uint
}

// parseOptions returns flag.ErrHelp, and the text in `usage`, where that was asked for.
func parseOptions(args []string) (o *options, usage string, err error) {
	o = &options{}
	var text strings.Builder
	flags := flag.NewFlagSet("go-server", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.role, "role", "mixed", "mixed, prefill, decode or front")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:8000", "`HOST:PORT` to serve at; port 0 takes a free one")
	flags.StringVar(&o.model, "model", "", "`DIR` of a Hugging Face model")
	flags.StringVar(&o.modelName, "model-name", "", "`NAME` of the model for clients (default: the last part of DIR)")
	flags.StringVar(&o.front, "front", "", "`URL` of the front that a worker joins")
	flags.StringVar(&o.advertise, "advertise", "", "`URL` of this worker for its front (default: http:// and the address)")
	flags.StringVar(&o.secretFile, "secret-file", "", "`PATH` of 32 bytes, the same for all workers")
	flags.StringVar(&o.kvListen, "kv-listen", "", "`HOST:PORT` where other machines fetch KV from a prefill worker")
	flags.UintVar(&o.kvMiB, "kv-mib", 1024, "`MIB` of memory for KV")
	flags.UintVar(&o.maxSequences, "max-sequences", 0, "`N` sequences that run at once (default: the library's)")
	flags.UintVar(&o.maxBatchTokens, "max-batch-tokens", 0, "`N` tokens of a step at most (default: the library's)")
	flags.UintVar(&o.threads, "threads", 0, "`N` threads that compute (default: the library's)")
	flags.StringVar(&o.page, "page", "", "`FILE` for GET /")
	if err := flags.Parse(args); err != nil {
		flags.SetOutput(&text)
		flags.PrintDefaults()
		return nil, text.String(), err
	}
	if flags.NArg() > 0 {
		return nil, "", fmt.Errorf("what is %q?", flags.Arg(0))
	}
	return o, "", o.check()
}

func (o *options) worker() bool { return o.role == "prefill" || o.role == "decode" }

// check completes the options, and tells of the first that is wrong.
func (o *options) check() error {
	if !slices.Contains([]string{"mixed", "prefill", "decode", "front"}, o.role) {
		return fmt.Errorf("--role %s: mixed, prefill, decode and front are roles", o.role)
	}
	if o.role != "front" && o.model == "" {
		return errors.New("--model is missing")
	}
	if o.worker() && (o.front == "" || o.secretFile == "") {
		return errors.New("a worker needs --front and --secret-file")
	}
	for name, address := range map[string]string{"--listen": o.listen, "--kv-listen": o.kvListen} {
		if _, port, err := net.SplitHostPort(address); address != "" && err != nil {
			return fmt.Errorf("%s %s: HOST:PORT is wanted", name, address)
		} else if _, err := net.LookupPort("tcp", port); err != nil {
			return fmt.Errorf("%s %s: the port is wrong", name, address)
		}
	}
	for name, at := range map[string]*string{"--front": &o.front, "--advertise": &o.advertise} {
		*at = strings.TrimSuffix(*at, "/")
		if u, err := url.Parse(*at); *at != "" && (err != nil || u.Scheme != "http" || u.Host == "") {
			return fmt.Errorf("%s %s: http://HOST:PORT is wanted", name, *at)
		}
	}
	for _, n := range []uint{o.kvMiB, o.maxSequences, o.maxBatchTokens, o.threads} {
		if n > 1<<31 {
			return fmt.Errorf("%d is too many", n)
		}
	}
	if o.kvMiB == 0 {
		return errors.New("--kv-mib 0: there has to be room for KV")
	}
	if o.modelName == "" {
		o.modelName = filepath.Base(o.model)
	}
	return nil
}

package main

import (
	"strings"
	"testing"
)

func TestParseOptions(t *testing.T) {
	for _, c := range []struct {
		args  string
		right bool
	}{
		{"--model m", true}, {"--role front --secret-file s", true}, {"--role front", false},
		{"--role front --secret-file s --listen [::1]:0 --workers-listen h:1 --page p", true}, {"--model m --max-connections 0", false},
		{"--role decode --model a/m/ --front http://h:1/ --secret-file s --advertise http://h:2 --kv-mib 5 --threads 2", true},
		{"", false}, {"--role mixed", false}, {"--role both --model m", false}, {"--model m more", false}, {"--nonsense", false},
		{"--role prefill --model m --front http://h:1", false}, {"--role prefill --model m --secret-file s", true},
		{"--model m --device 1", true}, {"--model m --device -2", false}, {"--model m --device gpu", false},
		{"--model m --grpc h:1 --kv-lease 1 --drain 0", true}, {"--model m --kv-lease 0", false}, {"--model m --isolate", false}, {"--model m --kv-events h:1 --kv-events-replay h:2", true}, {"--model m --kv-events-replay h:2", false}, {"--model m --openengine", false},
		{"--role front --secret-file s --grpc h:1", false}, {"--model m --kv-mib 0", false}, {"--model m --kv-mib -1", false}, {"--model m --threads many", false},
		{"--role decode --model m --front h:1 --secret-file s", false},
	} {
		o, err := parseOptions(strings.Fields(c.args))
		if (err == nil) != c.right {
			t.Errorf("%s: %v", c.args, err)
		}
		if err == nil && o.role == "decode" && (o.modelName != "m" || o.front != "http://h:1") {
			t.Errorf("%+v", o)
		}
	}
}

package capi

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every function of the C API is called from this package, and from nowhere else.
func TestEveryFunctionIsReachable(t *testing.T) {
	header, err := os.ReadFile("../../../../include/cleave/cleave.h")
	if os.IsNotExist(err) {
		t.Skip("not in cleave's own tree")
	}
	if err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Glob("*.[gh]*")
	if err != nil || len(sources) < 5 {
		t.Fatal(sources, err)
	}
	var text strings.Builder
	for _, source := range sources {
		content, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(content)
	}
	functions := regexp.MustCompile(`(?m)^[a-z][^(\n]*[ *](cleave_[a-z0-9_]*)\(`).FindAllStringSubmatch(string(header), -1)
	if len(functions) < 40 {
		t.Fatalf("%d functions in cleave.h", len(functions))
	}
	for _, function := range functions {
		symbol := function[1]
		// Go code calls the function, or calls a function of bridge.h that calls it.
		direct := strings.Contains(text.String(), "C."+symbol+"(")
		bridged := strings.Contains(text.String(), "C.bridge_"+strings.TrimPrefix(symbol, "cleave_")+"(") &&
			regexp.MustCompile(`[^.]\b`+symbol+`\(`).MatchString(text.String())
		if !direct && !bridged {
			t.Errorf("%s is not reachable", symbol)
		}
	}
}

func TestCgoIsHereAlone(t *testing.T) {
	sources, err := filepath.Glob("../../*.go")
	if err != nil || len(sources) < 10 {
		t.Fatal(sources, err)
	}
	for _, source := range sources {
		content, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		if regexp.MustCompile(`(?m)^import "C"`).Match(content) {
			t.Errorf("%s uses cgo", source)
		}
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// targets reads what Dynamo's VirtualConnector publishes in etcd: v1/NAMESPACE/planner/num_prefill_workers,
// num_decode_workers and decision_id. scaled_decision_id is the answer.
type targets struct{ etcd, namespace string }

// decision is one of the planner's. Numbers that were not published are -1.
type decision struct{ prefill, decode, id, scaled int }

// complete reports whether the planner has published how many workers it wants. It writes the id last.
func (d decision) complete() bool { return d.prefill >= 0 && d.decode >= 0 && d.id >= 0 }

// pending reports whether the planner waits for the decision to be acknowledged.
func (d decision) pending() bool { return d.complete() && d.id > d.scaled }

func (t targets) prefix() string { return "v1/" + t.namespace + "/planner/" }

// read returns the newest decision.
func (t targets) read(ctx context.Context) (decision, error) {
	prefix := []byte(t.prefix())
	end := bytes.Clone(prefix)
	end[len(end)-1]++ // the first key after those with the prefix
	var answer struct{ KVs []struct{ Key, Value []byte } }
	err := t.call(ctx, "range", map[string][]byte{"key": prefix, "range_end": end}, &answer)
	d := decision{-1, -1, -1, -1}
	into := map[string]*int{"num_prefill_workers": &d.prefill, "num_decode_workers": &d.decode, "decision_id": &d.id, "scaled_decision_id": &d.scaled}
	for _, kv := range answer.KVs {
		if number := into[strings.TrimPrefix(string(kv.Key), t.prefix())]; number != nil && err == nil {
			*number, err = strconv.Atoi(string(kv.Value))
		}
	}
	return d, err
}

// acknowledge tells the planner that its decision is carried out.
func (t targets) acknowledge(ctx context.Context, d decision) error {
	return t.call(ctx, "put", map[string][]byte{"key": []byte(t.prefix() + "scaled_decision_id"), "value": []byte(strconv.Itoa(d.id))}, nil)
}

// call uses etcd's JSON gateway, in which keys and values are base64, as Go encodes them.
func (t targets) call(ctx context.Context, method string, body, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, "POST", t.etcd+"/v3/kv/"+method, bytes.NewReader(text))
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", request.URL, response.Status)
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(answer)
}

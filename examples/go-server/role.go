package main

import (
	"encoding/json"
	"net/http"
	"time"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
)

// serveRole adds GET and POST /role, which show and switch the engine's role.
func serveRole(s *server, h *engineHost) {
	s.handle("/role", map[string]handler{
		"GET": func(w http.ResponseWriter, r *http.Request) error {
			load, err := h.Engine.Load()
			if err != nil {
				return err
			}
			sendJSON(w, http.StatusOK, encode(roleState(load)))
			return nil
		},
		"POST": func(w http.ResponseWriter, r *http.Request) error {
			body, err := readBody(w, r, s.authenticator, s.audience)
			if err != nil {
				return err
			}
			var wanted struct{ Role string }
			role, known := cleave.Role(0), false
			if json.Unmarshal(body, &wanted) == nil {
				role, known = core.Roles[wanted.Role]
			}
			if !known {
				return invalid("role", "role must be mixed, prefill or decode")
			}
			load, err := h.SetRole(r.Context(), role)
			if err != nil {
				return err
			}
			sendJSON(w, http.StatusOK, encode(roleState(load)))
			return nil
		},
	})
}

// roleState proves the role in effect: since when, and the requests that were open then.
func roleState(load cleave.EngineLoad) map[string]any {
	return map[string]any{
		"role":       core.RoleName(load.Role),
		"since_step": load.RoleSinceStep,
		"since":      load.RoleSince().UTC().Format(time.RFC3339Nano),
		"in_flight": map[string]int{"prefilling": load.PrefillingAtSwitch, "decoding": load.DecodingAtSwitch,
			"waiting": load.WaitingAtSwitch, "importing": load.ImportingAtSwitch},
	}
}

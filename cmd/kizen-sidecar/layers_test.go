package main

import (
	"encoding/json"
	"slices"
	"testing"
)

// layersHere returns the layers that doctor reports as held and as missing, without those of a step's own network.
func layersHere(t *testing.T, arguments ...string) (held, missing []string) {
	t.Helper()
	got := sidecar(t, "", nil, append([]string{"doctor", "--json"}, arguments...)...)
	var found struct {
		Layers []struct {
			Name string
			Held bool
		}
	}
	if err := json.Unmarshal([]byte(got.stdout), &found); err != nil || len(found.Layers) < 10 {
		t.Fatalf("%v: %s", err, got.stdout)
	}
	for _, layer := range found.Layers {
		switch {
		case !layer.Held:
			missing = append(missing, layer.Name)
		case layer.Name != "network namespace" && layer.Name != "connection policy":
			held = append(held, layer.Name)
		}
	}
	return held, missing
}

func requireLayers(t *testing.T, d document, held, missing []string) {
	t.Helper()
	if !slices.Equal(d.Layers.Held, held) || !slices.Equal(d.Layers.Missing, missing) {
		t.Errorf("got %+v, want %q held and %q missing", d.Layers, held, missing)
	}
}

// TestEveryResultOfRunListsTheLayersInForce: the document of run lists the layers that doctor reports for the same
// flags, whether the step succeeds or fails. The sandbox, its report and two commands meet.
func TestEveryResultOfRunListsTheLayersInForce(t *testing.T) {
	for _, mode := range []string{"auto", "off"} {
		held, missing := layersHere(t, "--sandbox", mode)
		for script, code := range map[string]int{"pass": exitOK, "raise ValueError": exitStepFailed} {
			got := sidecar(t, script, nil, "run", "--script", "-", "--json", "--sandbox", mode)
			var d document
			if err := json.Unmarshal([]byte(got.stdout), &d); err != nil || got.code != code {
				t.Fatalf("%d, %v: %s", got.code, err, got.stdout)
			}
			requireLayers(t, d, held, missing)
		}
	}
}

// TestAStepsOwnNetworkNamespaceIsListed: with --network kizen-only, the document lists the network namespace among its
// layers.
func TestAStepsOwnNetworkNamespaceIsListed(t *testing.T) {
	got := sidecar(t, "pass", nil, "run", "--script", "-", "--json", "--network", "kizen-only")
	var d document
	if err := json.Unmarshal([]byte(got.stdout), &d); err != nil || !slices.Contains(d.Layers.Held, "network namespace") {
		t.Errorf("%v: %s", err, got.stdout)
	}
}

// TestEveryResultOfServeListsTheLayersInForce: serve names the same layers in its answer and in the kept execution, for
// a step that succeeds and for one that fails.
func TestEveryResultOfServeListsTheLayersInForce(t *testing.T) {
	held, missing := layersHere(t)
	s := startServe(t)
	for source, status := range map[string]int{"pass": 200, "raise ValueError": 400} {
		got := s.ask("POST", "/api/coderunner/run", script(source))
		d := got.document(t)
		if got.status != status {
			t.Errorf("%s: %d", source, got.status)
		}
		requireLayers(t, d, held, missing)
		kept := s.ask("GET", "/executions/"+d.RequestID, nil)
		var execution struct{ Result document }
		if err := json.Unmarshal([]byte(kept.body), &execution); err != nil {
			t.Fatalf("%v: %s", err, kept.body)
		}
		requireLayers(t, execution.Result, held, missing)
	}
}

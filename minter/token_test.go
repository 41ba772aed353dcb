package minter_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/minter"
)

func TestOnlyRevealShowsTheToken(t *testing.T) {
	const secret = "canary-7f3a"
	token := minter.NewToken(secret)
	key := minter.Key{ID: "id", Token: token}
	held := struct {
		Token *minter.Token
		Keys  []minter.Key
		Map   map[string]minter.Token
		inner minter.Token
		deep  []minter.Key
	}{&token, []minter.Key{key}, map[string]minter.Token{"a": token}, token, []minter.Key{key}}

	var shown bytes.Buffer
	for _, value := range []any{token, &token, key, &key, held, &held} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%10.3s"} {
			fmt.Fprintf(&shown, verb+"\n", value)
		}
		encoded, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		shown.Write(encoded)
		slog.New(slog.NewTextHandler(&shown, nil)).Info("text", "value", value)
		slog.New(slog.NewJSONHandler(&shown, nil)).Info("json", "value", value)
		fmt.Fprintln(&shown, fmt.Errorf("%w: %v", errors.New("failed"), value))
	}
	for _, form := range []string{secret, fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret),
		fmt.Sprintf("%d", []byte(secret))} {
		if strings.Contains(shown.String(), form) {
			t.Errorf("the token shows as %q", form)
		}
	}
	if token.Reveal() != secret {
		t.Error("Reveal does not return the token")
	}
}

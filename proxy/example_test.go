package proxy_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"

	"github.com/kizen/kizen-sidecar/proxy"
)

// leased is a key that never changes; a minter.Lease would renew it.
type leased string

func (k leased) Key(context.Context) (string, error) { return string(k), nil }

// The client calls a path without credentials, and the API gets an authenticated request.
func Example() {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("the api gets", r.URL.Path, "of", r.Header.Get("X-BUSINESS-ID"), "with a key:",
			r.Header.Get("X-API-KEY") != "")
		_, _ = io.WriteString(w, "[]")
	}))
	defer api.Close()
	root, err := url.Parse(api.URL + "/api")
	if err != nil {
		log.Fatal(err)
	}

	p, err := proxy.New(proxy.Config{
		APIRoot: root, BusinessID: "b-1", UserID: "code-account-1", Keys: leased("a-key-of-at-least-a-few-characters"),
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := p.Start(); err != nil {
		log.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{}}
	answer, err := client.Get(p.URL() + "/custom-objects")
	if err != nil {
		log.Fatal(err)
	}
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		log.Fatal(err)
	}
	_ = answer.Body.Close()
	fmt.Println("the client gets", answer.StatusCode, string(body))

	client.CloseIdleConnections()
	if err := p.Shutdown(context.Background()); err != nil {
		log.Fatal(err)
	}
	// Output:
	// the api gets /api/custom-objects of b-1 with a key: true
	// the client gets 200 []
}

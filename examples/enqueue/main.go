// Command enqueue is a small orchestrator: it enqueues a script for a fleet of kizen-sidecar workers, waits, and prints
// how it ended.
//
//	export REDIS_URL=redis://127.0.0.1:6379/0 KIZEN_BUSINESS_ID=b-1 KIZEN_USER_ID=code-account-1
//	go run ./examples/enqueue 'outputs.log("hello")'
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/client"
)

func main() {
	business, account := os.Getenv("KIZEN_BUSINESS_ID"), os.Getenv("KIZEN_USER_ID")
	if len(os.Args) != 2 || business == "" || account == "" {
		fmt.Fprintln(os.Stderr,
			"usage: enqueue SCRIPT; KIZEN_BUSINESS_ID and KIZEN_USER_ID must name a business and its Code Account")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	request := client.Request{BusinessID: business, UserID: account, Runtime: "python-3-13", UserScript: os.Args[1]}
	if err := run(ctx, os.Getenv("REDIS_URL"), request, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "enqueue:", err)
		os.Exit(1)
	}
}

// run queues an execution, and prints its outcome and result once it has ended.
func run(ctx context.Context, redisURL string, request client.Request, out io.Writer) error {
	options, err := redis.ParseURL(redisURL)
	if err != nil {
		return fmt.Errorf("REDIS_URL: %w", err)
	}
	store := redis.NewClient(options)
	defer store.Close()
	queue := client.Queue{Redis: store}
	id, err := queue.Enqueue(ctx, request)
	if err != nil {
		return err
	}
	finished, err := queue.Wait(ctx, request.BusinessID, id)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, finished.Outcome)
	return json.NewEncoder(out).Encode(finished.Result)
}

// Command enqueue is a small orchestrator: it puts a script into the queue of
// a fleet of kizen-sidecar worker, waits, and prints what became of it.
//
//	export REDIS_URL=redis://127.0.0.1:6379/0 KIZEN_BUSINESS_ID=b-1 KIZEN_USER_ID=code-account-1
//	go run ./examples/enqueue 'outputs.log("hello")'
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: enqueue SCRIPT")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	business, account := os.Getenv("KIZEN_BUSINESS_ID"), os.Getenv("KIZEN_USER_ID")
	if business == "" || account == "" {
		fmt.Fprintln(os.Stderr, "enqueue: KIZEN_BUSINESS_ID and KIZEN_USER_ID must name a business and its Code Account")
		os.Exit(2)
	}
	if err := run(ctx, os.Getenv("REDIS_URL"), business, account, os.Args[1], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "enqueue:", err)
		os.Exit(1)
	}
}

// run queues a script for a business and its Code Account, and prints its outcome and result once it has ended.
func run(ctx context.Context, redisURL, business, account, script string, out io.Writer) error {
	options, err := redis.ParseURL(redisURL)
	if err != nil {
		return fmt.Errorf("REDIS_URL: %w", err)
	}
	store := redis.NewClient(options)
	defer store.Close()

	execution := uuid.NewString()
	body, err := json.Marshal(map[string]any{ // of POST /executions
		"execution_id": execution, "business_id": business, "user_id": account,
		"runtime": "python-3-13", "user_script": script,
	})
	if err != nil {
		return err
	}
	// The task's id keeps asynq from queueing an execution twice.
	client := asynq.NewClientFromRedisClient(store)
	task := asynq.NewTaskWithHeaders("kizen:execution", body, map[string]string{"enqueued_at": time.Now().Format(time.RFC3339Nano)})
	if _, err := client.EnqueueContext(ctx, task, asynq.Queue("kizen"), asynq.TaskID(business+"/"+execution)); err != nil {
		return fmt.Errorf("enqueue the execution: %w", err)
	}
	for {
		record, err := store.HGetAll(ctx, "kizen:{"+business+"}:run:"+execution).Result()
		switch {
		case err != nil:
			return fmt.Errorf("read the record of the execution: %w", err)
		case record["state"] == "finished":
			fmt.Fprintln(out, record["outcome"])
			fmt.Fprintln(out, record["result"])
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return errors.New("no worker has finished it; is one running on this Redis?")
		}
	}
}

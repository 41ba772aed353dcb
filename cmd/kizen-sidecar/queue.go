package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/fleet"
	"github.com/kizen/kizen-sidecar/internal/terminal"
)

// queueCommand is kizen-sidecar queue.
type queueCommand struct {
	List    queueListCommand    `cmd:"" help:"List executions that wait, run, or were given up."`
	Show    queueShowCommand    `cmd:"" help:"Show everything known about one execution."`
	Retry   queueRetryCommand   `cmd:"" help:"Run dead letters again, and delayed tasks now."`
	Discard queueDiscardCommand `cmd:"" help:"Delete dead letters."`
	Cancel  queueCancelCommand  `cmd:"" help:"Cancel waiting or running executions."`
	Drain   queueDrainCommand   `cmd:"" help:"Stop workers from taking executions, and wait until they have none left."`
}

// fleetFlags name the queue of a fleet in a Redis.
type fleetFlags struct {
	redisFlags
	Queue  string `help:"Queue of the fleet." default:"kizen" placeholder:"NAME" group:"Worker"`
	Queues int    `help:"Number of queues of the fleet: --queues of its workers." default:"1" least:"1" placeholder:"N" group:"Worker"`
}

// operate calls do with an operator of the queue. If do finds nothing to act on, the exit code is 1.
func (f fleetFlags) operate(do func(*fleet.Operator) error) error {
	if err := checkQueue(f.Queue, f.Queues); err != nil {
		return err
	}
	if f.RedisURL == "" {
		return exit.Usagef("no redis given; name the Redis of the queue with --redis-url")
	}
	client, err := f.connect(nil)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	err = do(fleet.NewOperator(client, f.Queue, f.Queues))
	if errors.Is(err, fleet.ErrNothing) {
		return exit.Nothingf("%s", strings.TrimSuffix(err.Error(), ": "+fleet.ErrNothing.Error()))
	}
	return err
}

// queueListCommand is kizen-sidecar queue list.
type queueListCommand struct {
	fleetFlags
	State     string `help:"Only tasks in this state: waiting, put_off (delayed until a time), active (a worker has it), dead (given up and kept), trimmed (given up and since deleted by asynq)." enum:",waiting,put_off,active,dead,trimmed" default:"" placeholder:"STATE" env:"-"`
	Callbacks bool   `help:"List callbacks instead of executions." env:"-"`
	Limit     int    `help:"Maximum number for each state." default:"100" least:"1" placeholder:"N" env:"-"`
	JSON      bool   `help:"Print a JSON object." env:"-"`
}

// Help is the long text of kizen-sidecar queue list --help.
func (queueListCommand) Help() string {
	return `An id is BUSINESS/EXECUTION, unless the orchestrator chose another id for its task.

Examples:
  kizen-sidecar queue list --redis-url redis://redis:6379
  kizen-sidecar queue list --state dead --json
  kizen-sidecar queue list --callbacks --state dead`
}

// Run is called by kong.
func (c *queueListCommand) Run(ctx context.Context, app *app) error {
	return c.operate(func(o *fleet.Operator) error {
		found, err := o.List(ctx, c.Callbacks, c.State, c.Limit)
		if err != nil {
			return err
		}
		if c.JSON {
			return terminal.PrintJSON(app.stdout, found)
		}
		return found.Print(app.stdout)
	})
}

// queueShowCommand is kizen-sidecar queue show.
type queueShowCommand struct {
	fleetFlags
	ID   string `arg:"" help:"BUSINESS/EXECUTION, or the id of the task."`
	JSON bool   `help:"Print a JSON object, with the result." env:"-"`
}

// Help is the long text of kizen-sidecar queue show --help.
func (queueShowCommand) Help() string {
	return `Shows the execution's task and record, but never its script, inputs or secrets. The exit code is 1 if the execution is unknown.

Examples:
  kizen-sidecar queue show business-1/0f59ea53-7e0c-4f8d-a0b8-8ab5f9a2f1b4
  kizen-sidecar queue show business-1/e-1 --json`
}

// Run is called by kong.
func (c *queueShowCommand) Run(ctx context.Context, app *app) error {
	return c.operate(func(o *fleet.Operator) error {
		shown, err := o.Show(ctx, c.ID)
		if err != nil {
			return err
		}
		if c.JSON {
			return terminal.PrintJSON(app.stdout, shown)
		}
		return shown.Print(app.stdout)
	})
}

// queueRetryCommand is kizen-sidecar queue retry.
type queueRetryCommand struct {
	fleetFlags
	IDs       []string `arg:"" optional:"" name:"id" help:"BUSINESS/EXECUTION, or the id of the task."`
	Dead      bool     `help:"Retry all dead letters." env:"-"`
	Callbacks bool     `help:"Deliver callbacks again in place of executions." env:"-"`
}

// Help is the long text of kizen-sidecar queue retry --help.
func (queueRetryCommand) Help() string {
	return `A dead letter runs again as a new attempt, with its own callback. An execution that has run does not run again: enqueue it under a new id. The exit code is 1 if no task with that id can be retried.

Examples:
  kizen-sidecar queue retry business-1/e-1 business-1/e-2
  kizen-sidecar queue retry --dead
  kizen-sidecar queue retry --callbacks --dead`
}

// Run is called by kong.
func (c *queueRetryCommand) Run(ctx context.Context, app *app) error {
	if c.Dead == (len(c.IDs) > 0) {
		return exit.Usagef("name ids, or all dead letters with --dead")
	}
	return c.operate(func(o *fleet.Operator) error {
		if !c.Dead {
			return each(c.IDs, func(id string) error {
				retry := o.Retry
				if c.Callbacks {
					retry = o.RetryCallback
				}
				if err := retry(ctx, id); err != nil {
					return err
				}
				_, err := fmt.Fprintf(app.stdout, "%s is queued again\n", id)
				return err
			})
		}
		n, err := o.RetryDead(ctx, c.Callbacks)
		if err == nil {
			_, err = fmt.Fprintf(app.stdout, "queued again: %d dead letters\n", n)
		}
		return err
	})
}

// queueDiscardCommand is kizen-sidecar queue discard.
type queueDiscardCommand struct {
	fleetFlags
	IDs       []string `arg:"" optional:"" name:"id" help:"BUSINESS/EXECUTION, or the id of the task."`
	Dead      bool     `help:"Discard all dead letters." env:"-"`
	Callbacks bool     `help:"Discard callbacks that were given up, in place of executions." env:"-"`
}

// Help is the long text of kizen-sidecar queue discard --help.
func (queueDiscardCommand) Help() string {
	return `A dead letter has ended and its callback has reported it, but its request is kept for 90 days. This deletes its task, its request and its record. The id still does not run again. The exit code is 1 if no dead letter has that id.

Examples:
  kizen-sidecar queue discard business-1/e-1 business-1/e-2
  kizen-sidecar queue discard --dead
  kizen-sidecar queue discard --callbacks --dead`
}

// Run is called by kong.
func (c *queueDiscardCommand) Run(ctx context.Context, app *app) error {
	if c.Dead == (len(c.IDs) > 0) {
		return exit.Usagef("name ids, or all dead letters with --dead")
	}
	return c.operate(func(o *fleet.Operator) error {
		if !c.Dead {
			return each(c.IDs, func(id string) error {
				discard := o.Discard
				if c.Callbacks {
					discard = o.DiscardCallback
				}
				if err := discard(ctx, id); err != nil {
					return err
				}
				_, err := fmt.Fprintf(app.stdout, "%s is discarded\n", id)
				return err
			})
		}
		n, err := o.DiscardDead(ctx, c.Callbacks)
		if err == nil {
			_, err = fmt.Fprintf(app.stdout, "discarded: %d dead letters\n", n)
		}
		return err
	})
}

// each calls do for every id, and returns the errors.
func each(ids []string, do func(id string) error) error {
	var errs []error
	for _, id := range ids {
		errs = append(errs, do(id))
	}
	return errors.Join(errs...)
}

// queueCancelCommand is kizen-sidecar queue cancel.
type queueCancelCommand struct {
	fleetFlags
	IDs []string `arg:"" name:"id" help:"BUSINESS/EXECUTION, or the id of the task."`
}

// Help is the long text of kizen-sidecar queue cancel --help.
func (queueCancelCommand) Help() string {
	return `An execution that no worker has ends as cancelled at once. Otherwise its worker revokes the key and kills the step, within a third of --lease. Callbacks report the end. The exit code is 1 if no execution with that id waits or runs.

Examples:
  kizen-sidecar queue cancel business-1/e-1`
}

// Run is called by kong.
func (c *queueCancelCommand) Run(ctx context.Context, app *app) error {
	return c.operate(func(o *fleet.Operator) error {
		return each(c.IDs, func(id string) error {
			running, err := o.Cancel(ctx, id)
			if err != nil {
				return err
			}
			what := "is cancelled"
			if running {
				what = "is running on a worker, which will end it"
			}
			_, err = fmt.Fprintf(app.stdout, "%s %s\n", id, what)
			return err
		})
	})
}

// queueDrainCommand is kizen-sidecar queue drain.
type queueDrainCommand struct {
	fleetFlags
	Timeout time.Duration `help:"Maximum wait for active executions; the queue stays drained afterwards." default:"2m" least:"0s" placeholder:"DURATION" env:"-"`
	Resume  bool          `help:"End a drain: workers take executions again." env:"-"`
}

// Help is the long text of kizen-sidecar queue drain --help.
func (queueDrainCommand) Help() string {
	return `No worker takes another execution until the drain ends. New executions wait, and callbacks are delivered. The command returns when no worker has an execution left, for example before maintenance of Redis.

Examples:
  kizen-sidecar queue drain --timeout 90s
  kizen-sidecar queue drain --resume`
}

// Run is called by kong.
func (c *queueDrainCommand) Run(ctx context.Context, app *app) error {
	return c.operate(func(o *fleet.Operator) error {
		if c.Resume {
			if err := o.Resume(); err != nil {
				return err
			}
			_, err := fmt.Fprintf(app.stdout, "workers take executions from queue %q again\n", c.Queue)
			return err
		}
		ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout,
			fmt.Errorf("the --timeout of %s has passed; the queue stays drained", c.Timeout))
		defer cancel()
		err := o.Drain(ctx, func(active int) { app.log.Info("draining", "queue", c.Queue, "active", active) })
		if err == nil {
			_, err = fmt.Fprintf(app.stdout, "queue %q is drained; resume it with kizen-sidecar queue drain --resume\n",
				c.Queue)
		}
		return err
	})
}

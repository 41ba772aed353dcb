package webhook

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
)

// The types of messages.
const (
	finishedType = "execution.finished"
	lateType     = "execution.late_result"
)

// Finished is an execution that has ended.
type Finished struct {
	ExecutionID string           `json:"execution_id"`
	BusinessID  string           `json:"business_id"`
	Outcome     outcomes.Outcome `json:"outcome"`
	// Result is the document that POST /api/coderunner/run returns.
	Result json.RawMessage `json:"result"`
	// Late marks a result that the worker reported after the fleet had already ended the execution. The outcome that
	// was sent first remains valid.
	Late bool `json:"-"`
	// Run counts how often the execution, as a dead letter, was run again.
	Run int64 `json:"-"`
	// Conflict is the digest of a request that was refused because another request had its id before. It is empty for
	// the end of an execution.
	Conflict string `json:"-"`
}

// Message returns the message that reports the end of an execution to url; at is the time of the end. The same end of
// the same execution always has the same ID.
func (f Finished) Message(url string, at time.Time) (Message, error) {
	kind, about := finishedType, f.BusinessID+"/"+f.ExecutionID
	if f.Run > 0 {
		about += fmt.Sprintf("/run/%d", f.Run)
	}
	if f.Late {
		kind, about = lateType, about+"/late"
	}
	if f.Conflict != "" {
		about += "/conflict/" + f.Conflict
	}
	body, err := json.Marshal(struct {
		Type      string    `json:"type"`
		Timestamp time.Time `json:"timestamp"`
		Data      Finished  `json:"data"`
	}{kind, at.UTC(), f})
	name := uuid.NewSHA1(uuid.NameSpaceURL, []byte("kizen:"+about))
	return Message{ID: "msg_" + strings.ReplaceAll(name.String(), "-", ""), URL: url, Body: body}, err
}

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
	// Result is the document that POST /api/coderunner/run answers with.
	Result json.RawMessage `json:"result"`
	// Late: the execution had been ended on its worker's behalf when the worker reported this. The outcome that was told stands.
	Late bool `json:"-"`
	// Run is how often the execution, kept as a dead letter, was run again.
	Run int64 `json:"-"`
}

// Message is what url is told of an execution that ended at a time. The same end of the same execution always has the same id.
func (f Finished) Message(url string, at time.Time) (Message, error) {
	kind, about := finishedType, f.BusinessID+"/"+f.ExecutionID
	if f.Run > 0 {
		about += fmt.Sprintf("/run/%d", f.Run)
	}
	if f.Late {
		kind, about = lateType, about+"/late"
	}
	body, err := json.Marshal(struct {
		Type      string    `json:"type"`
		Timestamp time.Time `json:"timestamp"`
		Data      Finished  `json:"data"`
	}{kind, at.UTC(), f})
	name := uuid.NewSHA1(uuid.NameSpaceURL, []byte("kizen:"+about))
	return Message{ID: "msg_" + strings.ReplaceAll(name.String(), "-", ""), URL: url, Body: body}, err
}

package webhook

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/google/uuid"
)

// finishedType is the type of the one kind of message there is.
const finishedType = "execution.finished"

// Finished is an execution that has ended.
type Finished struct {
	ExecutionID string `json:"execution_id"`
	BusinessID  string `json:"business_id"`
	// Outcome is how it ended: an outcome of the runner, "refused", "not_started" or "worker_died".
	Outcome string `json:"outcome"`
	// Result is the document that POST /api/coderunner/run answers with.
	Result json.RawMessage `json:"result"`
}

// Message is what url is told of an execution that ended at a time. The same execution always has the same id.
func (f Finished) Message(url string, at time.Time) (Message, error) {
	body, err := json.Marshal(struct {
		Type      string    `json:"type"`
		Timestamp time.Time `json:"timestamp"`
		Data      Finished  `json:"data"`
	}{finishedType, at.UTC(), f})
	name := uuid.NewSHA1(uuid.NameSpaceURL, []byte("kizen:"+f.BusinessID+"/"+f.ExecutionID))
	return Message{ID: "msg_" + strings.ReplaceAll(name.String(), "-", ""), URL: url, Body: body}, err
}

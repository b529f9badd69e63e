package celery

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/google/uuid"
)

// maxRevoke is how many ids one message carries: a worker of 5.6.2 and later
// stores a result for each, and does nothing else meanwhile (facts, 1.6).
const maxRevoke = 500

// tombstone takes the place of a removed message in a list until it is taken out.
// Should a worker pop it, it logs an unknown message and acknowledges it. Anything
// less than a complete envelope would end the worker (facts, 4).
const tombstone = `{"body": "", "content-encoding": "utf-8", "content-type": "application/json", ` +
	`"headers": {}, "properties": {"delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": ""}, ` +
	`"priority": 0, "body_encoding": "base64", "delivery_tag": "orphanwatch-tombstone"}}`

// pidboxChannel is where workers listen for control commands: prefix is the
// broker's global_keyprefix, db the broker's, exchange the app's control_exchange
// ("celery"); fanout_prefix is taken to be its default (facts, 3.1).
func pidboxChannel(prefix string, db int, exchange string) string {
	return prefix + "/" + strconv.Itoa(db) + "." + exchange + ".pidbox"
}

// pidboxEnvelope and pidboxBody are what celery.app.control.Control.revoke
// publishes (facts, 3.2). All of it is always written: an envelope without
// properties makes every worker exit.
type pidboxEnvelope struct {
	Body            string           `json:"body"`
	ContentEncoding string           `json:"content-encoding"`
	ContentType     string           `json:"content-type"`
	Headers         struct{}         `json:"headers"`
	Properties      pidboxProperties `json:"properties"`
}

type pidboxProperties struct {
	DeliveryMode int `json:"delivery_mode"`
	DeliveryInfo struct {
		Exchange   string `json:"exchange"`
		RoutingKey string `json:"routing_key"`
	} `json:"delivery_info"`
	Priority     int    `json:"priority"`
	BodyEncoding string `json:"body_encoding"`
	DeliveryTag  string `json:"delivery_tag"`
}

type pidboxBody struct {
	Method      string     `json:"method"`
	Arguments   revokeArgs `json:"arguments"`
	Destination *string    `json:"destination"`
	Pattern     *string    `json:"pattern"`
	Matcher     *string    `json:"matcher"`
}

type revokeArgs struct {
	TaskID    []string `json:"task_id"`
	Terminate bool     `json:"terminate"`
	Signal    string   `json:"signal"`
}

// revokeMessage tells all workers not to run these tasks. terminate is "off", or
// the signal by which a running one is ended: "SIGTERM" or "SIGKILL". It fails
// for no ids, more than maxRevoke, and ids that no task can have.
func revokeMessage(ids []string, terminate string) (string, error) {
	args := revokeArgs{TaskID: ids, Signal: "SIGTERM"} // Celery names it even where it is not sent
	switch terminate {
	case "off":
	case "SIGTERM", "SIGKILL":
		args.Terminate, args.Signal = true, terminate
	default:
		return "", fmt.Errorf("revoke: no such way to terminate: %q", terminate)
	}
	if len(ids) == 0 || len(ids) > maxRevoke {
		return "", fmt.Errorf("revoke: %d ids in a message of 1 to %d", len(ids), maxRevoke)
	}
	for _, id := range ids {
		if id == "" || !utf8.ValidString(id) { // it would be written as another id
			return "", errors.New("revoke: an id is empty or no UTF-8")
		}
	}
	body, err := json.Marshal(pidboxBody{Method: "revoke", Arguments: args})
	if err != nil {
		return "", fmt.Errorf("revoke: %w", err)
	}
	e := pidboxEnvelope{
		Body:            base64.StdEncoding.EncodeToString(body),
		ContentEncoding: "utf-8",
		ContentType:     typeJSON,
		Properties: pidboxProperties{
			DeliveryMode: 2,
			BodyEncoding: "base64",
			DeliveryTag:  uuid.NewString(),
		},
	}
	e.Properties.DeliveryInfo.Exchange = "celery.pidbox"
	message, err := json.Marshal(e)
	if err != nil {
		return "", fmt.Errorf("revoke: %w", err)
	}
	return string(message), nil
}

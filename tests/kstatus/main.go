// kstatus reads one Kubernetes object as JSON and prints its status as GitOps tools compute it: InProgress, Current,
// Failed, Terminating, NotFound or Unknown, and the message.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func main() {
	text, err := io.ReadAll(os.Stdin)
	fail(err)
	var object unstructured.Unstructured
	fail(object.UnmarshalJSON(text))
	result, err := status.Compute(&object)
	fail(err)
	fmt.Printf("%s: %s\n", result.Status, result.Message)
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

module forebay.dev/echo

go 1.26.0

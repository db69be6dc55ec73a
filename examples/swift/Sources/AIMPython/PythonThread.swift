import Foundation

/// The one thread that Python runs on.
///
/// PythonKit takes Python's lock (the GIL) with the first call and never lets go of it, so a call
/// from any other thread would hang or crash.
final class PythonThread: @unchecked Sendable {
    static let shared = PythonThread()

    private let condition = NSCondition()
    private var jobs: [@Sendable () -> Void] = []

    private init() {
        let thread = Thread { [self] in
            while true { next()() }
        }
        thread.name = "Python"
        // The half megabyte that a thread has by default is too little for Python's imports.
        thread.stackSize = 16 << 20
        thread.start()
    }

    /// The result of work that takes and gives Swift's own values.
    func run<Value: Sendable>(
        _ work: @escaping @Sendable () throws -> Value
    ) async throws -> Value {
        try await withCheckedThrowingContinuation { continuation in
            append { continuation.resume(with: Result { try work() }) }
        }
    }

    /// Runs work some time later.
    func append(_ job: @escaping @Sendable () -> Void) {
        condition.lock()
        jobs.append(job)
        condition.signal()
        condition.unlock()
    }

    private func next() -> @Sendable () -> Void {
        condition.lock()
        defer { condition.unlock() }
        while jobs.isEmpty { condition.wait() }
        return jobs.removeFirst()
    }
}

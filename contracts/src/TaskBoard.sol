// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Governed} from "./Governed.sol";
import {MemberRegistry} from "./MemberRegistry.sol";

/// @title What the members agreed to train
/// @notice A quorum opens a task on terms that never change, and closes it.
contract TaskBoard is Governed {
    /// @notice A closed task refuses everything.
    enum Status {
        NONE,
        OPEN,
        CLOSED
    }

    /// @notice What a quorum agrees on.
    /// @param specification sha2-256 of the specification, a dag-cbor block.
    /// @param genesis sha2-256 multihash digest of the genesis model's CID.
    /// @param rounds Number of rounds.
    /// @param commitWindow Seconds from the opening of a round.
    /// @param revealWindow Seconds from the end of the commit window.
    struct Terms {
        bytes32 specification;
        bytes32 genesis;
        uint64 rounds;
        uint32 commitWindow;
        uint32 revealWindow;
    }

    /// @notice How far a task may go, and when and by whom it was opened.
    /// @dev One slot: rounds (8 bytes), commitWindow (4), revealWindow (4), openedAt (8), epoch (4),
    /// status (1).
    /// @param rounds Number of rounds.
    /// @param commitWindow Seconds.
    /// @param revealWindow Seconds.
    /// @param openedAt Timestamp of the block that opened the task.
    /// @param epoch The registry's epoch at that moment.
    /// @param status Whether the task is open.
    struct Schedule {
        uint64 rounds;
        uint32 commitWindow;
        uint32 revealWindow;
        uint64 openedAt;
        uint32 epoch;
        Status status;
    }

    /// @dev Slot 0: specification. Slot 1: genesis. Slot 2: schedule.
    struct Entry {
        bytes32 specification;
        bytes32 genesis;
        Schedule schedule;
    }

    // Immutables are written like constants, as OpenZeppelin and forge lint have them.
    // slither-disable-start naming-convention
    /// @notice The members.
    MemberRegistry public immutable REGISTRY;
    // slither-disable-end naming-convention

    /// @notice Number of tasks so far; their ids are 1 to taskCount.
    uint64 public taskCount;
    mapping(uint64 task => Entry) private _entries;

    /// @notice A quorum opened a task; its round 0 begins, under the members of `epoch`.
    event TaskOpened(uint64 indexed task, Terms terms, uint32 epoch);
    /// @notice A quorum closed a task.
    event TaskClosed(uint64 indexed task);

    /// @notice There is no such task.
    error UnknownTask(uint64 task);
    /// @notice The task is closed.
    error TaskNotOpen(uint64 task);
    /// @notice The terms lack a specification or a genesis model.
    error DigestMissing();
    /// @notice The terms have no rounds.
    error NoRounds();
    /// @notice A window of the terms is zero seconds, so a censored member could not speak.
    error ZeroWindow();

    /// @param registry The members.
    constructor(MemberRegistry registry) {
        REGISTRY = registry;
    }

    /// @notice Open a task. Governed.
    /// @param terms What the members agree on.
    /// @param salt Any value; a different one lets the same electorate open the same terms again.
    /// @return id The new id, or zero while approvals are missing.
    function openTask(Terms calldata terms, bytes32 salt) external returns (uint64 id) {
        // It counts as part of msg.data, under which _approve counts.
        // slither-disable-next-line redundant-statements
        salt;
        if (terms.specification == 0 || terms.genesis == 0) revert DigestMissing();
        if (terms.rounds == 0) revert NoRounds();
        if (terms.commitWindow == 0 || terms.revealWindow == 0) revert ZeroWindow();
        if (!_approve()) return 0;
        id = ++taskCount;
        uint32 epoch = REGISTRY.epoch();
        _entries[id] = Entry(
            terms.specification,
            terms.genesis,
            Schedule(
                terms.rounds,
                terms.commitWindow,
                terms.revealWindow,
                uint64(block.timestamp),
                epoch,
                Status.OPEN
            )
        );
        emit TaskOpened(id, terms, epoch);
    }

    /// @notice Close a task for ever. Governed.
    function closeTask(uint64 id) external {
        Status status = _known(id).schedule.status;
        if (status != Status.OPEN) revert TaskNotOpen(id);
        if (!_approve()) return;
        _entries[id].schedule.status = Status.CLOSED;
        emit TaskClosed(id);
    }

    /// @notice A task's terms and state.
    /// @return terms What a quorum agreed on.
    /// @return status Whether it is open.
    /// @return openedAt Timestamp of the block that opened it.
    /// @return epoch The registry's epoch at that moment.
    function task(uint64 id)
        external
        view
        returns (Terms memory terms, Status status, uint64 openedAt, uint32 epoch)
    {
        Entry memory entry = _known(id);
        Schedule memory schedule = entry.schedule;
        terms = Terms(
            entry.specification, entry.genesis, schedule.rounds, schedule.commitWindow, schedule.revealWindow
        );
        return (terms, schedule.status, schedule.openedAt, schedule.epoch);
    }

    /// @notice The part of a task that every round reads.
    function scheduleOf(uint64 id) external view returns (Schedule memory) {
        return _known(id).schedule;
    }

    /// @notice The specification's digest: what the first result of a task names as its predecessor.
    function specificationOf(uint64 id) external view returns (bytes32) {
        return _known(id).specification;
    }

    function _electorate() internal view override returns (uint32) {
        return REGISTRY.head().electorate;
    }

    function _standing(address owner) internal view override returns (uint16 seat, uint16 quorum) {
        // _electorate returns the first value.
        // slither-disable-next-line unused-return
        (, seat, quorum) = REGISTRY.standing(owner);
    }

    function _known(uint64 id) private view returns (Entry storage entry) {
        entry = _entries[id];
        if (entry.schedule.status == Status.NONE) revert UnknownTask(id);
    }
}
